"""Finds checkpoints on disk: which are complete, what they say, whether they are as they were written.

A folder ``step-NNNNNN`` counts once it holds ``COMPLETE.json``, which is written last and states the size and SHA-256
of every other file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import CheckpointError, first_line
from hebrew_asr.files import from_json, sha256_of

FORMAT = 1
SEAL = "COMPLETE.json"
STATE = "state.json"
EVAL = "eval.json"
"""What was measured after the checkpoint was written; not listed in the seal, it has one of its own."""
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    values: dict[str, Any]
    """Content of ``state.json``, and what was measured later."""
    files: dict[str, dict[str, Any]]
    """Size and SHA-256 of every file, by name."""

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Compare files with their recorded size and hash: all, or every ``parts``-th from ``part`` on.

        Raises:
            CheckpointError: naming the file that differs.
        """
        for name in sorted(self.files)[part::parts]:
            file = self.path / name
            try:
                whole = file.stat().st_size == self.files[name].get("size") and seal_of(file) == self.files[name]
            except OSError as error:
                raise CheckpointError(f"checkpoint file {file} cannot be read: {first_line(error)}") from error
            if not whole:
                raise CheckpointError(f"checkpoint file {file} is damaged: size or hash differ from what was written")


@dataclass(frozen=True)
class Damaged:
    """A checkpoint folder that does not say what it is, and why."""

    path: Path
    reason: str


def survey(folder: Path) -> tuple[list[Checkpoint], list[Damaged]]:
    """Complete checkpoints in ``folder``, oldest first, and those that cannot be read; half-written ones are neither.

    Raises:
        CheckpointError: one was written by another version of this program, in a format that this one does not know.
    """
    found, unreadable = [], []
    for path in sorted(folder.glob("step-*")):
        match = _NAME.fullmatch(path.name)
        if match is None or not (path / SEAL).exists():
            continue
        try:
            found.append(_read(path, int(match[1])))
        except (OSError, ValueError, TypeError) as error:  # torn, empty, or other things in their place
            unreadable.append(Damaged(path, f"{path}: {first_line(error)}"))
    return sorted(found, key=lambda checkpoint: checkpoint.step), unreadable


def newest_whole(found: list[Checkpoint], ranks: Ranks) -> tuple[Checkpoint, list[Damaged]]:
    """The newest checkpoint that is as it was written, and the newer ones that are not; collective.

    Args:
        found: oldest first; the first rank's counts. Each file is read once on every machine.
        ranks: as many as like, on as many machines as like, which see the same folder.

    Raises:
        CheckpointError: none is whole.
    """
    damaged = []
    for checkpoint in reversed(ranks.broadcast(found)):
        reason = _damage(checkpoint, ranks)
        if reason is None:
            return checkpoint, damaged
        damaged.append(Damaged(checkpoint.path, reason))
    raise ranks.in_common(CheckpointError(no_checkpoint(damaged)))


def _damage(checkpoint: Checkpoint, ranks: Ranks) -> str | None:
    """Why it is not as it was written, if it is not: the ranks of each machine share its files."""
    hosts = ranks.gather(socket.gethostname())
    here = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
    reason = None
    try:
        checkpoint.verify(here.index(ranks.rank), len(here))
    except CheckpointError as error:
        reason = str(error)
    return next(filter(None, ranks.gather(reason)), None)


def no_checkpoint(damaged: list[Damaged]) -> str:
    """Said where there are checkpoints and none can be gone on from."""
    folder, reasons = damaged[0].path.parent, "; ".join(item.reason for item in damaged)
    return f"no checkpoint in {folder} is whole ({reasons}); bring one back, or give --run another name to start anew"


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one; its files stay. Returns its new place.

    Raises:
        OSError: the disk.
    """
    places = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    place = next(place for place in places if not place.exists())
    path.rename(place)
    return place


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints of ``survey``, which says what is raised."""
    return survey(folder)[0]


def ranked_by_wer(found: list[Checkpoint]) -> list[list[Checkpoint]]:
    """Measured checkpoints, the lowest WER first and the later of equals. Only what was measured alike is compared.

    Args:
        found: oldest first.

    Returns:
        One list for each split and set of clips that WER was measured on, that of the newest measured checkpoint last.
    """
    groups: dict[Any, list[Checkpoint]] = {}
    for checkpoint in found:
        if checkpoint.values.get("wer") is not None:
            wer_of = checkpoint.values.get("wer_of")
            groups[wer_of] = [*groups.pop(wer_of, []), checkpoint]
    return [sorted(group, key=lambda item: (item.values["wer"], -item.step)) for group in groups.values()]


def _read(path: Path, step: int) -> Checkpoint:
    values, sealed = _object(path / STATE), _object(path / SEAL)
    if isinstance(values.get("format"), int) and values["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {values['format']}, this version reads {FORMAT}")
    files = sealed.get("files")
    if not isinstance(files, dict) or not all(isinstance(seal, dict) for seal in files.values()):
        raise ValueError(f"{SEAL} lists no files")
    if any(Path(name).name != name for name in files):
        raise ValueError(f"{SEAL} lists files outside its folder")
    if files.get(STATE) != seal_of(path / STATE):
        raise ValueError(f"{STATE} differs from what was written")
    if values.get("step", step) != step:
        raise ValueError(f"it holds the state of step {values['step']}; was it renamed?")
    return Checkpoint(path, step, {**values, **_measured(path / EVAL)}, files)


def with_own_seal(values: dict[str, Any]) -> dict[str, Any]:
    """Values to be written as ``eval.json``."""
    return {"sha256": _hash_of(values), "values": values}


def _measured(file: Path) -> dict[str, Any]:
    """What a checkpoint's ``eval.json`` adds to its state; nothing where it is not there or not whole.

    The evaluation is then made up for, as one that was cut short.
    """
    try:
        written = _object(file)
        return written["values"] if written["sha256"] == _hash_of(written["values"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _hash_of(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _object(file: Path) -> dict[str, Any]:
    try:
        value = from_json(file.read_bytes())
    except ValueError as error:  # of UTF-8 too
        raise ValueError(f"{file.name} is not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return value


def seal_of(file: Path) -> dict[str, Any]:
    """A file's size in bytes and SHA-256."""
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}
