"""``hebrew-asr audit``: is this set fit to train on?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hebrew_asr.config.options import Out
from hebrew_asr.config.values import Count, Processes


@dataclass
class Command:
    """Decode and check every clip of a prepared set; write audit.html and audit.json into its folder.

    Exit code: 0 when nothing is wrong, 1 when something is (odd clips to listen to, and what could not be checked, do
    not count), 3 when the set cannot be read.

    $ hebrew-asr audit mine
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder with train.jsonl and, if it has an evaluation side, eval.jsonl; or its URL, such as s3://bucket/set."""
    out: Out[Path | None] = None
    """Where to write the page and the JSON file; into the folder itself by default, and for a URL here."""
    processes: Processes | None = None
    """Worker processes; by default one per usable core."""
    suspects: Count = 40
    """How many of the oddest clips to show."""
    decode: bool = True
    """Check only texts, names and the split, as of a set that takes days to decode."""

    def run(self) -> int:
        from hebrew_asr.audit.audit import audit
        from hebrew_asr.audit.checks import PROBLEM_KINDS
        from hebrew_asr.audit.page import write_audit
        from hebrew_asr.commands.ours import make_folder, refuse_overwriting
        from hebrew_asr.data.manifest import has_manifest
        from hebrew_asr.remote.paths import is_url
        from hebrew_asr.units import count

        out = self.out or Path("." if is_url(self.folder) else self.folder)
        refuse_overwriting(out / "audit.html", ": data audit</title>")
        refuse_overwriting(out / "audit.json", '"problem_counts"')
        if is_url(self.folder) or has_manifest(Path(self.folder, "train.jsonl")):  # else audit says what is wrong
            make_folder(out)
        found = audit(self.folder, processes=self.processes, suspects=self.suspects, decodes=self.decode)
        for kind, holds in PROBLEM_KINDS.items():
            problems = [problem for problem in found.problems if problem.kind == kind]
            if not problems:
                print(f"?        {found.unchecked[kind]}" if kind in found.unchecked else f"ok       {holds}")
                continue
            print(f"PROBLEM  {kind}: {len(problems):,}")
            for problem in problems[:3]:
                print(f"         {problem.clip_id}: {problem.detail}")
        page = write_audit(found, out)
        print(f"{count(len(found.suspects), 'odd clip')} to listen to: {page}")
        return 0 if found.clean else 1
