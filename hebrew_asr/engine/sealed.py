"""Checkpoints as they lie on disk: which are complete, what they say, whether they are as they were written.

A folder ``step-NNNNNN`` counts once it holds ``COMPLETE.json``, which is written last and states the size and SHA-256
of every other file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.errors import CheckpointError, first_line

FORMAT = 1
SEAL = "COMPLETE.json"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    values: dict[str, Any]
    """Content of ``state.json``."""
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
class Unreadable:
    """A checkpoint folder that does not say what it is, and why."""

    path: Path
    reason: str


def survey(folder: Path) -> tuple[list[Checkpoint], list[Unreadable]]:
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
            unreadable.append(Unreadable(path, f"{path}: {first_line(error)}"))
    return sorted(found, key=lambda checkpoint: checkpoint.step), unreadable


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints of ``survey``, which says what is raised."""
    return survey(folder)[0]


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
    return Checkpoint(path, step, values, files)


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:  # of UTF-8 too
        raise ValueError(f"{file.name} is not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return value


def seal_of(file: Path) -> dict[str, Any]:
    """A file's size in bytes and SHA-256."""
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
