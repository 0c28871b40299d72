"""``hebrew-asr compare``: is one system better than another on the same clips?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass
class Command:
    """Compare two systems' transcripts of the same clips: the difference of WER and its 95 % interval.

    The interval is of a paired bootstrap by group: each resample takes the same speakers or sources of both.

    $ hebrew-asr compare heard theirs.csv --reference eval.jsonl
    """

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Transcripts of the first system; a folder that eval --out wrote, or a file as score reads it."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Those of the second."""
    reference: Path | None = None
    """What was said, such as a manifest; not needed where A and B hold it."""
    json: bool = False
    """Print the figures as one JSON object."""

    def run(self) -> int:
        from hebrew_asr.text.scoring import comparison
        from hebrew_asr.text.transcripts import read_pairs

        pairs = [
            read_pairs(side, None) if self.reference is None else read_pairs(self.reference, side)
            for side in (self.first, self.second)
        ]
        result: dict[str, Any] = {"first": str(self.first), "second": str(self.second), **comparison(*pairs)}
        if self.json:
            print(json.dumps(result, ensure_ascii=False))
            return 0
        print(f"A: {self.first}\nB: {self.second}")
        for mode, found in result["modes"].items():
            low, high = (100 * found[f"difference_{end}_95"] for end in ("low", "high"))
            word = "not told apart" if low <= 0 <= high else "B is better" if high < 0 else "A is better"
            print(
                f"{mode:<8} WER A {found['wer_first']:.2%}, B {found['wer_second']:.2%}; B minus A "
                f"{100 * found['difference']:+.2f} points ({low:+.2f} to {high:+.2f}): {word}; {found['words']} words"
            )
        print(f"normalizers of version {result['normalizer_version']}; interval: {result['interval']}, paired")
        return 0
