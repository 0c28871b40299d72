"""Checkpoints that are whole or not there: written under a temporary name, fsynced, hashed, renamed.

``checkpoints/step-000500/`` holds one ``optimizer-rankNNNNN.safetensors`` a rank (masters and moments of what trains;
frozen weights come from the base model), ``state.json`` and, written last, ``COMPLETE.json`` with every file's size and
SHA-256. Discovery ignores any folder without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.engine import TrainEngine
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import sync_folder, write_json

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    values: dict[str, Any]
    """Content of ``state.json``."""

    def verify(self) -> None:
        """Compare every file with its recorded size and hash.

        Raises:
            CheckpointError: naming the file that differs.
        """
        listed = json.loads((self.path / "COMPLETE.json").read_text())["files"]
        for name, expected in listed.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["size"] or _sha256(file) != expected["sha256"]:
                raise CheckpointError(
                    f"checkpoint file {file} is damaged; remove {self.path} to resume from an earlier one"
                )


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints in ``folder``, oldest first; anything half-written is passed over."""
    found = []
    for path in folder.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / "COMPLETE.json").is_file():
            found.append(Checkpoint(path, int(match[1]), json.loads((path / "state.json").read_text(encoding="utf-8"))))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


class CheckpointStore:
    """Writes checkpoints of a run and keeps the last few and the best."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep_last: int, keep_best: int):
        """``folder`` need not exist yet."""
        self.folder, self._ranks = folder, ranks
        self._keep_last, self._keep_best = keep_last, keep_best

    def save(self, engine: TrainEngine, step: int, values: dict[str, Any]) -> Path:
        """Write one checkpoint; collective.

        Args:
            engine: whose state every rank writes.
            step: optimizer steps done, names the folder.
            values: JSON values of ``state.json``; ``wer`` among them decides which is best.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".tmp-step-{step:06d}"
        if self._ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._ranks.barrier()
        engine.save_state(temporary)
        own = sorted(temporary.glob(f"*-rank{self._ranks.rank:05d}.*"))
        listed = self._ranks.gather({file.name: _sealed(file) for file in own})
        if self._ranks.is_main:
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, **values})
            files = {name: entry for part in listed for name, entry in part.items()}
            files["state.json"] = _sealed(temporary / "state.json")
            write_json(temporary / "COMPLETE.json", {"files": files})
            if final.exists():  # the same step, saved again after a resume
                shutil.rmtree(final)
            temporary.rename(final)
            sync_folder(self.folder)
            self._retain()
        self._ranks.barrier()
        return final

    def _retain(self) -> None:
        """Delete all but the last ``keep_last`` and the best ``keep_best`` by WER; never fails the run."""
        complete = find_checkpoints(self.folder)
        measured = [checkpoint for checkpoint in complete if checkpoint.values.get("wer") is not None]
        best = sorted(measured, key=lambda checkpoint: checkpoint.values["wer"])[: self._keep_best]
        kept = {checkpoint.path for checkpoint in [*complete[-self._keep_last :], *best]}
        for checkpoint in complete:
            if checkpoint.path not in kept:
                shutil.rmtree(checkpoint.path, ignore_errors=True)
        for leftover in self.folder.glob(".tmp-step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _sealed(file: Path) -> dict[str, Any]:
    """Flush a file to disk and describe it."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return {"size": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
