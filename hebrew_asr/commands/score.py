"""``hebrew-asr score``: the figures of ``eval`` for anybody's transcripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hebrew_asr.config.options import Out


@dataclass
class Command:
    """Count word and character errors of transcripts, whoever made them, as eval counts its own.

    Text files are matched line by line; JSON lines, CSV, TSV, Kaldi's text and sclite's .trn by id. A manifest is a
    file of references, and what eval writes holds both. Every rate is told in three normalizers, each by its name.

    $ hebrew-asr score eval.jsonl theirs.csv
    $ hebrew-asr score heard --json
    """

    reference: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REF")]
    """What was said: .txt, .jsonl, .csv, .tsv, .trn, or Kaldi's file named text."""
    hypothesis: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[HYP]")] = None
    """What was heard; not needed where REF holds both."""
    out: Out[Path | None] = None
    """Folder for hypotheses.jsonl, figures.json, clips.csv and clips.html; those of other files are not replaced."""
    json: bool = False
    """Print the figures as one JSON object."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import refuse_other_results
        from hebrew_asr.files import write_atomically
        from hebrew_asr.report.clip_page import figures_text, write_results
        from hebrew_asr.text.scoring import figures
        from hebrew_asr.text.transcripts import HYPOTHESES, as_json_lines, read_pairs

        found = read_pairs(self.reference, self.hypothesis)
        of = {"reference": str(self.reference), "hypothesis": str(self.hypothesis or self.reference)}
        if self.out is not None:
            refuse_other_results(self.out, of)
            write_atomically(self.out / HYPOTHESES, as_json_lines(found))
        counted = {**of, **figures(found)}
        if self.out is not None:
            write_results(self.out, found, counted, f"{self.hypothesis or self.reference}", {})
        print(json.dumps(counted, ensure_ascii=False) if self.json else figures_text(counted))
        return 0
