"""Which files a folder holds, as its owner sees it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hebrew_asr.errors import DataError

_OF_ARCHIVERS = ("__MACOSX", "lost+found")


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted: linked folders are followed, hidden files and folders passed over.

    Each folder is read once, under its own path where it lies below ``folder`` itself, so a link that leads back ends
    there. ``._x.flac``, which macOS leaves beside ``x.flac`` on foreign disks, is hidden as every ``.name`` is.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    above = [path.stat() for path in folder.resolve().parents]
    seen = {(status.st_dev, status.st_ino) for status in above}  # a link to them leads back too
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for path, is_linked_folder in _plain_below(start, seen):
                (links if is_linked_folder else found).append(path)
        waiting = sorted(links)
    return sorted(found)


def _plain_below(start: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """Files below a folder, and the linked folders there, which are not entered."""
    stack = [start]
    while stack:
        folder = stack.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = [entry for entry in entries if entry.name[0] != "." and entry.name not in _OF_ARCHIVERS]
                for entry in inside:
                    if not _is_folder(entry):
                        yield folder / entry.name, False
                    elif entry.is_symlink():
                        yield folder / entry.name, True
                    else:
                        stack.append(folder / entry.name)
        except OSError as error:
            raise DataError(f"cannot read folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; a link that leads to itself is a file that cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def file_problem(path: Path) -> tuple[str, str] | None:
    """Why there is no sound to read at a path: reason and detail; None for a regular file that holds something."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "no audio file", f"{path.name} is not there"
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name
        return "no audio file", f"{path.name[:80]}: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(status.st_mode):
        return "no audio file", f"{path.name} is not a regular file"
    return None if status.st_size else ("empty audio file", f"{path.name} has 0 bytes")
