"""Writes checkpoints that are whole or absent: under a temporary name, then fsync, hash, rename.

``checkpoints/step-000500/`` holds one ``optimizer-rankNNNNN.safetensors`` a rank (masters and moments of what trains;
frozen weights come from the base model), ``state.json`` and, written last, ``COMPLETE.json`` with every file's size and
SHA-256. Discovery ignores any folder without it.

Training waits only while the state is copied to host memory; a thread of each rank writes its own file. The threads
then tell the first rank's what they wrote, over a process group of their own, and it seals the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.checkpoints.sealed import (
    EVAL,
    FORMAT,
    SEAL,
    STATE,
    Checkpoint,
    find_checkpoints,
    ranked_by_wer,
    seal_of,
    with_own_seal,
)
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.optimizer_state import PartitionState, num_bytes, save_partitions
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import as_os_error, is_full, sync_folder, write_json
from hebrew_asr.logs import log

_HEADROOM_BYTES = 64 << 20
"""Left free for metrics and samples while training goes on."""
_JSON_NAMES = "|".join(map(re.escape, (SEAL, STATE, EVAL)))
_OWN_NAMES = re.compile(rf"optimizer-rank\d+\.safetensors|{_JSON_NAMES}|\.({_JSON_NAMES})\.\d+\.tmp")
"""Names of this program's files in a checkpoint folder, also while they are being written."""
_WRITERS_TIMEOUT_S = 1800.0
"""How long ranks may differ in writing their parts. One that died is noticed at once."""


@dataclass(frozen=True)
class Outcome:
    """What became of the checkpoint of one step."""

    step: int
    path: Path
    """Where it lies, or would lie."""
    failure: str | None = None
    """Why it is not there; None for one that is sealed."""
    is_full: bool = False
    """Whether it failed for want of room."""
    write_s: float = 0.0
    """Seconds from the copy of the state to the seal, or to the failure."""


class CheckpointStore:
    """Writes checkpoints of a run and keeps the last few and the best."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep_last: int,
        keep_best: int,
        background: bool,
        sealed_step: int | None = None,
    ):
        """Collective. ``folder`` need not exist yet.

        Args:
            folder: where checkpoints lie.
            ranks: all of them write.
            keep_last: newest checkpoints kept.
            keep_best: those of the lowest WER kept besides.
            background: return from ``save`` before the files are written.
            sealed_step: of the checkpoint that the run goes on from.
        """
        self.folder, self._ranks, self._background = folder, ranks, background
        self._keep_last, self._keep_best = keep_last, keep_best
        self._writers = ranks.apart(timeout_s=_WRITERS_TIMEOUT_S)
        self._writer: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._outcomes: list[Outcome] = []
        self._has_dropped = self._had_room = False
        self._attached: dict[int, dict[str, Any]] = {}
        self._attaching = threading.Lock()
        self.sealed_step = sealed_step
        """Step of the newest checkpoint that every rank knows to be sealed; None if there is none."""
        self.begun_step: int | None = None
        """Step of the checkpoint that is being written, or has been since ``finish``; None if there is none."""

    def save(
        self, copy_state: Callable[[], list[PartitionState]], step: int, values: dict[str, Any], *, last: bool = False
    ) -> Outcome | None:
        """Begin one checkpoint; collective. A disk without room costs the oldest checkpoints, not the run.

        Args:
            copy_state: gives this rank's state. It is called when the checkpoint before has been written, so that it
                may reuse that one's memory, and nothing else may change what it gave.
            step: optimizer steps done, names the folder.
            values: JSON values of ``state.json``; ``wer`` among them decides which is best, among those of the same
                ``wer_of``.
            last: the process ends after this, so the whole disk may be filled, and where that does not suffice it is
                tried again in place of each older checkpoint but the newest and the best.

        Returns:
            What became of it, the same on every rank; None if it is being written in the background.
        """
        self.finish()
        state = copy_state()
        needed = sum(self._ranks.gather(num_bytes(state)))
        self._begin(state, needed, step, values, headroom=0 if last else _HEADROOM_BYTES)
        if self._background and not last:
            return None
        outcome = self.finish()
        while last and self._ranks.broadcast(self._has_dropped):
            self._begin(state, needed, step, values, headroom=0)
            outcome = self.finish()
        return outcome

    def finish(self) -> Outcome | None:
        """Wait until the checkpoint that was begun is sealed, or has failed; collective.

        Returns:
            What became of it, the same on every rank; None if none was begun since the last call.
        """
        if self.begun_step is None:
            return None
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        outcome = self._ranks.broadcast(self._outcome)  # as the first rank says, which seals
        self.begun_step = None
        if outcome.failure is None:
            self.sealed_step = outcome.step
        # The system said that there was room, but it does not know of quotas, nor how many files there may be.
        self._has_dropped = self._had_room and outcome.is_full and self.drop_oldest()
        return outcome

    def when_written(self, act: Callable[[], object]) -> None:
        """Call ``act`` when this rank writes no more: at once, or from a thread for which the process's end waits.

        From then on another process may work on the folder.
        """
        if (writer := self._writer) is None:
            act()
            return

        def wait() -> None:
            writer.join()
            act()

        threading.Thread(target=wait, name="written").start()

    def take_outcomes(self) -> list[Outcome]:
        """What became of the checkpoints that were sealed or given up since the last call; on the first rank."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def attach(self, step: int, values: dict[str, Any]) -> None:
        """Add what was measured after the checkpoint of ``step`` was begun: ``values`` replace those given to ``save``.

        One that is still being written gets it when it is sealed, one that failed never; a disk that does not take it
        is tried again with the next.
        """
        if self._ranks.is_main and step in (self.sealed_step, self.begun_step):
            self._attached[step] = values
            self._write_attached()

    def _write_attached(self) -> None:
        with self._attaching:
            for step, values in list(self._attached.items()):
                folder = self.folder / f"step-{step:06d}"
                with contextlib.suppress(OSError, CheckpointError):
                    if (folder / SEAL).exists():
                        write_json(folder / EVAL, with_own_seal(values))
                        del self._attached[step]
                        self._retain()

    def _begin(
        self, state: list[PartitionState], needed: int, step: int, values: dict[str, Any], headroom: int
    ) -> None:
        temporary = self.folder / f".tmp-step-{step:06d}"
        self.begun_step, self._outcome, self._begun_s = step, None, time.monotonic()
        self._had_room = False
        if self._ranks.is_main:
            try:
                self.make_room(needed, headroom)
                self._had_room = True
                temporary.mkdir(exist_ok=True)
            except OSError as error:
                self._settle(step, as_os_error(error))
        if self._ranks.broadcast(self._outcome is not None):
            return
        self._writer = threading.Thread(target=self._write, args=(temporary, state, step, values), name="checkpoint")
        self._writer.start()

    def _write(self, temporary: Path, state: list[PartitionState], step: int, values: dict[str, Any]) -> None:
        """In a thread: this rank's file, then on the first rank the seal."""
        part: dict[str, Any] = {}
        error: OSError | None = None
        try:
            file = temporary / f"optimizer-rank{self._ranks.rank:05d}.safetensors"
            save_partitions(file, state)
            _sync(file)
            part[file.name] = seal_of(file)
        except Exception as failure:  # a full or broken disk, or no such folder: the first rank tells
            error = as_os_error(failure)
        try:
            parts = self._writers.gather((part, error))
            if self._ranks.is_main:
                _raise_first(parts)
                self._seal(temporary, {name: seal for part, _ in parts for name, seal in part.items()}, step, values)
        except Exception as failure:  # the disk again, or a rank that is gone
            error = as_os_error(failure)
        if self._ranks.is_main:
            self._settle(step, error)
            with contextlib.suppress(OSError, CheckpointError):
                _remove(temporary)
                self._retain()
            self._write_attached()

    def _settle(self, step: int, error: OSError | None) -> None:
        """Note what became of the checkpoint that was begun."""
        path, write_s = self.folder / f"step-{step:06d}", time.monotonic() - self._begun_s
        if error is None:
            self._outcome = Outcome(step, path, write_s=write_s)
        else:
            self._outcome = Outcome(step, path, error.strerror, is_full(error), write_s)
        self._outcomes.append(self._outcome)

    def _seal(self, temporary: Path, files: dict[str, Any], step: int, values: dict[str, Any]) -> None:
        for name, seal in files.items():
            with (temporary / name).open("rb") as stream:  # opened, so that a network file system looks again
                if os.fstat(stream.fileno()).st_size != seal["size"]:
                    raise OSError(
                        errno.EIO, f"{temporary / name} is not what its rank wrote: is the disk shared by all nodes?"
                    )
        write_json(temporary / STATE, {"format": FORMAT, "step": step, **values})
        write_json(temporary / SEAL, {"files": {**files, STATE: seal_of(temporary / STATE)}})
        _move(temporary, self.folder / f"step-{step:06d}")
        sync_folder(self.folder)

    def _retain(self) -> None:
        """Delete all but the last ``keep_last`` and the best ``keep_best`` by WER."""
        complete = find_checkpoints(self.folder)
        kept = {checkpoint.path for checkpoint in [*complete[-self._keep_last :], *self._best(complete)]}
        for checkpoint in complete:
            if checkpoint.path not in kept:
                _remove(checkpoint.path)

    def _best(self, complete: list[Checkpoint]) -> list[Checkpoint]:
        return [checkpoint for alike in ranked_by_wer(complete) for checkpoint in alike[: self._keep_best]]

    def make_room(self, needed: int, headroom: int = 0) -> None:
        """Drop as many of the oldest checkpoints as ``needed`` bytes take, and none if all would not do; on rank 0.

        Raises:
            OSError: there is no room.
        """
        if not self.folder.parent.exists():
            log.warning(
                "%s was moved or removed while it is trained: from here on its checkpoints and its model are written "
                "there anew; put them back together before --resume auto",
                self.folder.parent,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".tmp-step-*"):
            _remove(leftover)
        can_free = sum(map(_size, self._droppable()))
        while (free := shutil.disk_usage(self.folder).free) < needed + headroom:
            if free + can_free < needed + headroom or not self.drop_oldest():
                room = f"{needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free"
                room += f" of which {headroom / 2**20:,.0f} MiB stay so" if headroom else ""
                raise OSError(errno.ENOSPC, f"no room in {self.folder}: {room}")

    def drop_oldest(self) -> bool:
        """Delete the oldest checkpoint that is neither the newest nor among the best; whether there was one."""
        for path in self._droppable():
            log.warning("disk is full; dropping the oldest checkpoint %s", path)
            _remove(path)
            return not _own_files(path)
        return False

    def _droppable(self) -> list[Path]:
        """Checkpoints that are neither the newest nor among the best, oldest first."""
        complete = find_checkpoints(self.folder)
        protected = {checkpoint.path for checkpoint in [*complete[-1:], *self._best(complete)]}
        return [checkpoint.path for checkpoint in complete if checkpoint.path not in protected]


def _own_files(folder: Path) -> list[Path]:
    """Files of a checkpoint folder that this program wrote; people keep notes there too. None where there is none."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if _OWN_NAMES.fullmatch(path.name)]


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in _own_files(folder))


def _remove(folder: Path) -> None:
    """Unmark, then delete our own files; the folder goes if nothing else is in it.

    A kill in between leaves something that discovery ignores.
    """
    (folder / SEAL).unlink(missing_ok=True)
    for file in _own_files(folder):
        with contextlib.suppress(OSError):
            file.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _move(temporary: Path, final: Path) -> None:
    """Give a written checkpoint its name. The same step may have been saved before, and others' files lie beside it."""
    _remove(final)
    if not final.exists():
        temporary.rename(final)
        return
    for file in sorted(_own_files(temporary), key=lambda file: file.name == SEAL):  # the seal last
        if file.name == SEAL:
            sync_folder(final)
        file.replace(final / file.name)
    sync_folder(final)


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _raise_first(parts: list[tuple[dict[str, Any], OSError | None]]) -> None:
    """Raise the failures of all ranks as one."""
    failed = [(rank, error) for rank, (_, error) in enumerate(parts) if error is not None]
    if failed:
        rank, error = failed[0]
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise OSError(error.errno, f"rank {rank}{others}: {error.strerror}")
