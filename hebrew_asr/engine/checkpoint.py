"""Checkpoints that are whole or not there: written under a temporary name, fsynced, hashed, renamed.

``checkpoints/step-000500/`` holds one ``optimizer-rankNNNNN.safetensors`` a rank (masters and moments of what trains;
frozen weights come from the base model), ``state.json`` and, written last, ``COMPLETE.json`` with every file's size and
SHA-256. Discovery ignores any folder without it.

Training waits only while the state is copied to host memory; a thread of each rank writes its own file and the first
rank's thread seals the folder when every rank's part is there. No collective runs beside the trainer's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.state import CarriedPartition, num_bytes, save_partitions
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import sync_folder, write_json

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")
_POLL_S = 0.05
_HEADROOM_BYTES = 64 << 20


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
            if not file.is_file() or _seal(file) != expected:
                raise CheckpointError(
                    f"checkpoint file {file} is damaged; remove {self.path} to resume from an earlier one"
                )


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints in ``folder``, oldest first; anything half-written is passed over."""
    found = []
    for path in folder.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / "COMPLETE.json").is_file():
            values = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise CheckpointError(f"{path} has format {values.get('format')}, this version reads {FORMAT}")
            found.append(Checkpoint(path, int(match[1]), values))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


class CheckpointStore:
    """Writes checkpoints of a run and keeps the last few and the best."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep_last: int, keep_best: int, background: bool):
        """``folder`` need not exist yet; ``background``: return from ``save`` before the files are written."""
        self.folder, self._ranks, self._background = folder, ranks, background
        self._keep_last, self._keep_best = keep_last, keep_best
        self._writer: threading.Thread | None = None
        self._failure: OSError | None = None
        self._written: list[tuple[int, Path]] = []

    def save(self, copy_state: Callable[[], list[CarriedPartition]], step: int, values: dict[str, Any]) -> None:
        """Begin one checkpoint; collective. A disk without room costs the oldest checkpoints, not the run.

        Args:
            copy_state: gives this rank's state. It is called when the checkpoint before has been written, so that it
                may reuse that one's memory, and nothing else may change what it gave.
            step: optimizer steps done, names the folder.
            values: JSON values of ``state.json``; ``wer`` among them decides which is best.
        """
        self.finish()
        state = copy_state()
        needed = sum(self._ranks.gather(num_bytes(state)))
        if not self._ranks.broadcast(not self._ranks.is_main or self._make_room(needed)):
            return
        temporary = self.folder / f".tmp-step-{step:06d}"
        if self._ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._ranks.barrier()
        self._writer = threading.Thread(target=self._write, args=(temporary, state, step, values), name="checkpoint")
        self._writer.start()
        if not self._background:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is sealed on every rank, or has failed; collective."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        failures = [text for text in self._ranks.gather(str(self._failure) if self._failure else None) if text]
        self._failure = None
        if failures and self._ranks.is_main:
            print(f"warning: a checkpoint could not be written ({failures[0]}); training goes on", file=sys.stderr)
            self._drop_oldest()

    def take_written(self) -> list[tuple[int, Path]]:
        """Steps and folders of the checkpoints sealed since the last call; on the first rank."""
        written, self._written = self._written, []
        return written

    def _write(self, temporary: Path, state: list[CarriedPartition], step: int, values: dict[str, Any]) -> None:
        """In a thread: this rank's file, then on the first rank the seal."""
        rank = self._ranks.rank
        try:
            file = temporary / f"optimizer-rank{rank:05d}.safetensors"
            save_partitions(file, state)
            _sync(file)
            write_json(temporary / f"part-{rank:05d}.json", {file.name: _seal(file)})
            if self._ranks.is_main:
                self._complete(temporary, step, values)
        except Exception as error:  # a full or broken disk; told by finish()
            self._failure = error if isinstance(error, OSError) else OSError(str(error))
            (temporary / "FAILED").touch() if temporary.is_dir() else None

    def _complete(self, temporary: Path, step: int, values: dict[str, Any]) -> None:
        parts = [temporary / f"part-{rank:05d}.json" for rank in range(self._ranks.size)]
        while not all(part.is_file() for part in parts):
            if (temporary / "FAILED").exists():
                raise OSError("another rank could not write its part")
            time.sleep(_POLL_S)
        files = {name: seal for part in parts for name, seal in json.loads(part.read_text()).items()}
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **values})
        files["state.json"] = _seal(temporary / "state.json")
        write_json(temporary / "COMPLETE.json", {"files": files})
        for part in parts:
            part.unlink()
        final = self.folder / f"step-{step:06d}"
        shutil.rmtree(final, ignore_errors=True)  # the same step, saved again after a resume
        temporary.rename(final)
        sync_folder(self.folder)
        self._retain()
        self._written.append((step, final))

    def _retain(self) -> None:
        """Delete all but the last ``keep_last`` and the best ``keep_best`` by WER; never fails the run."""
        complete = find_checkpoints(self.folder)
        kept = {checkpoint.path for checkpoint in [*complete[-self._keep_last :], *self._best(complete)]}
        for checkpoint in complete:
            if checkpoint.path not in kept:
                _remove(checkpoint.path)
        for leftover in self.folder.glob(".tmp-step-*"):
            _remove(leftover)

    def _best(self, complete: list[Checkpoint]) -> list[Checkpoint]:
        measured = [checkpoint for checkpoint in complete if checkpoint.values.get("wer") is not None]
        return sorted(measured, key=lambda checkpoint: checkpoint.values["wer"])[: self._keep_best]

    def _make_room(self, needed: int) -> bool:
        """Whether ``needed`` bytes fit, after dropping old checkpoints if they must; says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".tmp-step-*"):
            _remove(leftover)
        while (free := shutil.disk_usage(self.folder).free) < needed + _HEADROOM_BYTES:
            if not self._drop_oldest():
                print(
                    f"warning: no room for a checkpoint in {self.folder}: {needed / 2**30:.2f} GiB needed, "
                    f"{free / 2**30:.2f} GiB free; training goes on without it",
                    file=sys.stderr,
                )
                return False
        return True

    def _drop_oldest(self) -> bool:
        """Delete the oldest checkpoint that is neither the newest nor among the best; whether there was one."""
        complete = find_checkpoints(self.folder)
        protected = {checkpoint.path for checkpoint in [*complete[-1:], *self._best(complete)]}
        for checkpoint in complete:
            if checkpoint.path not in protected:
                print(f"warning: disk is full; dropping the oldest checkpoint {checkpoint.path}", file=sys.stderr)
                _remove(checkpoint.path)
                return True
        return False


def _remove(folder: Path) -> None:
    """Unmark, then delete: a kill in between leaves something that discovery ignores."""
    (folder / "COMPLETE.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _seal(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
