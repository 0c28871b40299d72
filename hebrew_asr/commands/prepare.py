"""``hebrew-asr prepare``: corpora in, one training set out."""

from __future__ import annotations

from dataclasses import dataclass

from hebrew_asr.cores import loading_modules
from hebrew_asr.corpus.preparation.options import PrepareOptions


@dataclass
class Command(PrepareOptions):
    """Prepare a training set: decode, filter, cut, deduplicate, split without leaks. Parallel, and safe to interrupt.

    Run again after any interruption, it continues; the result is the same to the byte. What was dropped, and why, is in
    dropped.jsonl, line by line. Next: hebrew-asr audit.

    $ hebrew-asr prepare
    (the Round 2 recipe: both ivrit.ai corpora from the hub, whose terms you accept there once; needs HF_TOKEN)
    $ hebrew-asr prepare --source shards/crowd-transcribe-v5 shards/recital --out data
    (the same from parquet shards on this machine)
    $ hebrew-asr prepare --source recordings --out data --eval-fraction 0.1
    (your own: audio or video beside texts of the same name, txt, srt, vtt or TextGrid; or a listing as csv, tsv or JSON
    lines, as NeMo, LJSpeech and Common Voice have it; or a data folder of Kaldi. Sub-folders are speakers or sessions)
    $ hebrew-asr prepare --audio wav --split random
    (for comparison: WAV files, and rows split at random, which puts one speaker on both sides)
    """

    def run(self) -> None:
        with loading_modules():
            from hebrew_asr.corpus.prepare import prepare
        prepare(self)
