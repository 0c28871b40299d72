"""``hebrew-asr prepare``: corpora in, one training set out."""

from __future__ import annotations

from dataclasses import dataclass

from hebrew_asr.data.preparation.options import PrepareOptions


@dataclass
class Command(PrepareOptions):
    """Prepare a training set: decode, filter, cut, deduplicate, split without leaks. Parallel, and safe to interrupt.

    Run again after any interruption, it continues; the result is the same to the byte.
    """

    def run(self) -> int:
        from hebrew_asr.data.prepare import prepare

        prepare(self)
        return 0
