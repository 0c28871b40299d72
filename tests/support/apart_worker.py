"""Ranks that do not see the same disk: a training run, or the store alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch

from hebrew_asr.checkpoints.store import CheckpointStore
from hebrew_asr.engine import dist
from hebrew_asr.engine.optimizer_state import KINDS, PartitionState
from tests.support.disks import hide_from_others, unshare_mounts


def main(arguments: list[str]) -> int:
    """``store FOLDER``: what the store says of three checkpoints; ``train FOLDER …``: a run with FOLDER hidden."""
    what, folder, *rest = arguments
    if what == "store":
        return _store(Path(folder))
    import hebrew_asr.train

    if os.environ["RANK"] == "1":
        unshare_mounts()
        hide_from_others(Path(folder))
    return hebrew_asr.train.main(rest)


def _store(folder: Path) -> int:
    """The second rank's view of the disk is in order, then read-only, then another disk."""
    ranks = dist.start("cpu")
    store = CheckpointStore(folder / "checkpoints", ranks, keep_last=9, keep_best=0, background=True)
    state = [PartitionState("head", [], {kind: torch.ones(1000) for kind in KINDS}, 1.0)]
    said = []
    for step in (1, 2, 3, 4):
        if ranks.rank == 1 and step == 2:
            unshare_mounts()
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        if ranks.rank == 1 and step == 3:
            hide_from_others(folder)
        if ranks.rank == 1 and step == 4:
            subprocess.run(["umount", folder], check=True)
            subprocess.run(["umount", folder], check=True)
        outcome = store.save(lambda: state, step, {}, last=True)
        said.append(outcome.failure)
    if ranks.is_main:
        print(json.dumps([said, store.sealed_step]))
    dist.stop()
    return 0
