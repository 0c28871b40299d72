"""``hebrew-asr report``: a run as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hebrew_asr.config.options import Out
from hebrew_asr.errors import EnvironmentProblem


@dataclass
class Command:
    """Write the report of a training run, finished or not, as one HTML file that needs no other file.

    Training writes it too, as it goes (logging.report of the recipe): open it in a browser and watch.

    $ hebrew-asr report runs/round2
    $ hebrew-asr report runs/a runs/b --out compared.html
    (both on the clips that both evaluated last)
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, such as runs/round2."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER]")] = None
    """A second run, to set beside the first."""
    out: Out[Path | None] = None
    """File to write; RUN/report.html unless given. A file that is there is overwritten only if it is such a report."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import refuse_overwriting
        from hebrew_asr.report.gather import read_run
        from hebrew_asr.report.page import write_report
        from hebrew_asr.report.rival import rival

        refuse_overwriting(self.out or self.run_dir / "report.html", ": training report</title>")
        found = None if self.other is None else rival(read_run(self.run_dir), read_run(self.other))
        if found is not None:
            print(found)
        try:
            print(write_report(self.run_dir, self.out, found))
        except OSError as error:
            where = self.out or self.run_dir
            raise EnvironmentProblem(
                f"cannot make the report {where}: {error}; --out FILE names another place"
            ) from error
        return 0
