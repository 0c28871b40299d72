"""``hebrew-asr normalize``: lines in, normalised lines out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal


@dataclass
class Command:
    """Normalise Hebrew text: reads lines from standard input, writes one line for each."""

    mode: Literal["target", "strict", "ivrit", "lenient"] = "strict"
    """target: what the model is trained to write; strict: our WER; ivrit: the ivrit.ai leaderboard's normaliser, bit
    for bit; lenient: strict, with numbers and a few spelling variants folded."""

    def run(self) -> int:
        from hebrew_asr.text.normalise import normalise

        sys.stdin.reconfigure(encoding="utf-8", newline="\n")
        sys.stdout.reconfigure(encoding="utf-8")
        for line in sys.stdin:
            print(normalise(line.removesuffix("\n"), self.mode))
        return 0
