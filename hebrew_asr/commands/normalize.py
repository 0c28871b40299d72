"""``hebrew-asr normalize``: lines in, normalized lines out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal


@dataclass
class Command:
    """Normalize Hebrew text: reads lines from standard input, writes one line for each.

    $ hebrew-asr normalize --mode strict < texts.txt
    """

    mode: Literal["target", "strict", "ivrit", "lenient"] = "strict"
    """target: what the model is trained to write; strict: our WER; ivrit: the ivrit.ai leaderboard's normalizer, bit
    for bit; lenient: strict, with numbers and a few spelling variants folded."""

    def run(self) -> int:
        from hebrew_asr.errors import DataError
        from hebrew_asr.text.normalize import normalize

        for number, line in enumerate(sys.stdin.buffer, 1):  # bytes: only \n ends a line, and the locale has no say
            try:
                text = normalize(line.decode("utf-8").removesuffix("\n"), self.mode)
            except UnicodeDecodeError as error:
                raise DataError(f"standard input: line {number} is not UTF-8; convert it with iconv first") from error
            sys.stdout.buffer.write(f"{text}\n".encode())
            sys.stdout.buffer.flush()
        return 0
