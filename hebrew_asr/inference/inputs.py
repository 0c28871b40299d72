"""What people name as input: files, folders, patterns, pipes and standard input; and where a result is written."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hebrew_asr.audio.decode import decode_blocks
from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError

STDIN = ("-", "/dev/stdin")


@dataclass(frozen=True)
class Input:
    """One recording."""

    name: str
    """As it was named, or found below the folder that was; ``-`` for standard input."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Its sound, as :func:`decode_blocks` gives it; a pipe is copied to a temporary file first.

        Raises:
            DataError: it cannot be used.
        """
        if self.name in STDIN:
            yield from decode_blocks(sys.stdin.buffer, name=self.name)
        elif _is_pipe(self.name):
            with open(self.name, "rb") as pipe:
                yield from decode_blocks(pipe, name=self.name)
        else:
            yield from decode_blocks(self.name)


def find_inputs(names: Sequence[str]) -> tuple[list[Input], list[DataError]]:
    """Every recording that is meant, each once, in the order of the names; those of a folder sorted by path.

    Returns:
        the recordings; and an error for each name that nothing has, and each folder or pattern with nothing in it.
    """
    found: dict[str, Input] = {}
    errors: list[DataError] = []
    for name in names:
        try:
            paths = _named(name)
        except DataError as error:
            errors.append(error)
            continue
        for path in paths:
            identity = STDIN[0] if path in STDIN else path if _is_pipe(path) else os.path.realpath(path)
            found.setdefault(identity, Input(path))
    return list(found.values()), errors


def _named(name: str) -> list[str]:
    if name in STDIN:
        return [name]
    if _exists(name) and Path(name).is_dir():
        below = _below(name)
        if not below:
            raise DataError(f"folder {name} holds no audio file (looked for {', '.join(sorted(AUDIO_SUFFIXES))})")
        return below
    if _exists(name):
        return [name]
    if not glob.has_magic(name):
        raise DataError(f"cannot use audio {name}: file not found")
    matching = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (a pattern may begin anywhere)
    if not matching:
        raise DataError(f"no file matches {name}")
    return [path for match in matching for path in (_below(match) if Path(match).is_dir() else [match])]


def _below(folder: str) -> list[str]:
    """Audio files below a folder, hidden ones and those behind links to folders left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            str(Path(place, name))
            for name in sorted(files)
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    return found


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a name
        return False


def _is_pipe(path: str) -> bool:
    return _exists(path) and Path(path).is_fifo()


def output_paths(inputs: Sequence[Input], folder: Path, suffix: str) -> list[Path]:
    """A file in ``folder`` for each input, no two alike even where case does not count: ``talk.srt`` for ``talk.mp3``.

    Names that would be alike keep their own suffix (``talk.mp3.srt``), then their folders below the nearest common one
    (``monday/talk.mp3.srt``), and then get a number.
    """
    names = ["stdin" if one.name in STDIN else one.name for one in inputs]
    absolute = [Path(name).absolute() for name in names]
    top = os.path.commonpath([path.parent for path in absolute]) if absolute else ""
    forms = [
        [path.stem for path in absolute],
        [path.name for path in absolute],
        [os.path.relpath(path, top) for path in absolute],
    ]
    chosen = forms[0]
    for form in forms[1:]:
        counts = Counter(name.casefold() for name in chosen)
        chosen = [longer if counts[name.casefold()] > 1 else name for name, longer in zip(chosen, form, strict=True)]
    taken: set[str] = set()
    paths = []
    for name in chosen:
        numbered, number = name, 1
        while numbered.casefold() in taken:
            number += 1
            numbered = f"{name}-{number}"
        taken.add(numbered.casefold())
        paths.append(folder / f"{numbered}.{suffix}")
    return paths
