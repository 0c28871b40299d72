"""``hebrew-asr index``: a manifest as a file that is mapped, not read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Command:
    """Write the Arrow file of a manifest beside it: training, plan and eval map it instead of reading JSON lines.

    ``prepare`` does this by itself. For a set of other making: five million clips then take a second to open, and the
    ranks of a machine share their memory. The JSON lines stay what counts: after any change of them the Arrow file is
    not believed, and is to be made anew.

    $ hebrew-asr index mine
    """

    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|FILE")]
    """Folder with train.jsonl and eval.jsonl, or one manifest as JSON lines."""

    def run(self) -> int:
        from hebrew_asr.data.manifest import index_manifest
        from hebrew_asr.errors import DataError

        found = [self.manifest]
        if self.manifest.is_dir():
            files = (self.manifest / f"{side}.jsonl" for side in ("train", "eval"))
            found = [path for path in files if path.is_file() and path.stat().st_size]
        if not found:
            raise DataError(f"{self.manifest} has neither a train.jsonl nor an eval.jsonl with clips")
        for path in found:
            print(index_manifest(path))
        return 0
