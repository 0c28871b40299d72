"""``hebrew-asr report``: a run as one HTML page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

_REFRESH_S = 30


@dataclass
class Command:
    """Write the report of a training run, finished or not, as one HTML file that needs no other file.

    With a second run, both are compared on the clips that both evaluated last: hebrew-asr report runs/a runs/b
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, such as runs/round2."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None
    """A second run, to set beside the first."""
    out: Path | None = None
    """File to write; RUN/report.html unless given. A file that is there is overwritten only if it is such a report."""

    follow: bool = False
    """Write it again whenever the run has gone on, until it is finished; a browser loads the page anew by itself."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import refuse_overwriting
        from hebrew_asr.errors import UsageError
        from hebrew_asr.report.gather import read_run
        from hebrew_asr.report.page import write_report
        from hebrew_asr.report.rival import rival

        refuse_overwriting(self.out or self.run_dir / "report.html", ": training report</title>")
        if self.follow:
            if self.other is not None:
                raise UsageError("--follow is for one run: leave the second one out")
            print(follow(self.run_dir, self.out))
            return 0
        found = None if self.other is None else rival(read_run(self.run_dir), read_run(self.other))
        if found is not None:
            print(found)
        print(write_report(self.run_dir, self.out, found))
        return 0


def follow(run_dir: Path, out: Path | None, pause_s: float = 10.0) -> Path:
    """Write the report anew whenever the run's records have grown, until it is finished; returns its path.

    Reading and writing take at most a tenth of the time.

    Raises:
        DataError: ``run_dir`` holds no run, or a file of it is broken.
    """
    from hebrew_asr.report.gather import read_run
    from hebrew_asr.report.page import write_run

    written = -1
    while True:
        began, size = time.monotonic(), sum(file.stat().st_size for file in run_dir.glob("metrics.jsonl"))
        run = read_run(run_dir)
        if run.is_finished:
            return write_run(run, out)
        if size != written:
            write_run(run, out, refresh_s=_REFRESH_S)
            written = size
        time.sleep(max(pause_s, 10 * (time.monotonic() - began)))
