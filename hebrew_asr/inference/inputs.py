"""What people name as input: files, folders, patterns, pipes and standard input; and where a result is written."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hebrew_asr.audio.decode import decode_blocks
from hebrew_asr.audio.reading import MOST_CHANNELS, RATES_HZ
from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.files import fitting_name
from hebrew_asr.remote.paths import is_url

STDIN = ("-", "/dev/stdin")


@dataclass(frozen=True)
class Input:
    """One recording."""

    name: str
    """As it was named, or found below the folder that was; ``-`` for standard input."""
    named: bool = True
    """Itself, not found in a folder or by a pattern, where a pipe is read by nobody: it could wait for ever."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Its sound, as :func:`decode_blocks` gives it; a pipe is copied to a temporary file first.

        Raises:
            DataError: it cannot be used.
        """
        if self.name in STDIN:
            yield from decode_blocks(sys.stdin.buffer, name=self.name)
        elif self.named and _is_pipe(self.name):
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
            found.setdefault(identity, Input(path, path == name))
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
    if is_url(name):
        raise DataError(f"cannot use audio {name}: no URL is read here; download it first, and give the file")
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
    (``monday/talk.mp3.srt``), and then get a number. What a file system would find too long is cut at its end.
    """
    names = ["stdin" if one.name in STDIN else one.name for one in inputs]
    absolute = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100 (Path keeps .., which leads out)
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
    for path in map(Path, chosen):
        numbered, number = path.with_name(fitting_name(path.name, f".{suffix}")), 1
        while str(numbered).casefold() in taken:
            number += 1
            numbered = path.with_name(fitting_name(path.name, f"-{number}.{suffix}"))
        taken.add(str(numbered).casefold())
        paths.append(folder / numbered)
    return paths


def blocks_of_any(sound: Any, rate_hz: int) -> Iterator[np.ndarray]:
    """The sound of whatever a program holds, as :func:`decode_blocks` gives it.

    Args:
        sound: path of an audio or video file, its content, an open binary file, or samples: a NumPy array or a tensor,
            of shape (samples,), (samples, channels) or (channels, samples). Floats have full scale at 1, integers at
            their largest value.
        rate_hz: of samples; files say their own.

    Raises:
        UsageError: ``sound`` is none of these. DataError, while iterating: it cannot be used.
    """
    import torch  # seconds, which names of files do without

    if isinstance(sound, (str, Path, bytes)) or (hasattr(sound, "read") and not isinstance(sound, io.TextIOBase)):
        return decode_blocks(sound)
    if isinstance(sound, (bytearray, memoryview)):
        return decode_blocks(bytes(sound))
    if isinstance(sound, torch.Tensor):
        sound = (sound.float() if sound.is_floating_point() else sound).detach().cpu().numpy()
    if not isinstance(sound, np.ndarray):
        raise UsageError(
            f"cannot transcribe a {type(sound).__name__}: give a path, the content of a file, an open binary file, or "
            f"samples as a NumPy array or a tensor; of several recordings give one at a time"
        )
    return decode_blocks(_wav_of(sound, rate_hz), name="the array")


def _wav_of(samples: np.ndarray, rate_hz: int) -> bytes:
    """Samples as the content of a file: so they go the way of all recordings."""
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    channels = 1 if samples.ndim == 1 else samples.shape[-1]
    if samples.ndim not in (1, 2) or not samples.size or channels > MOST_CHANNELS:
        raise UsageError(f"an array of shape {samples.shape} is no recording: give (samples,) or (samples, channels)")
    if rate_hz not in range(RATES_HZ[0], RATES_HZ[1] + 1):
        raise UsageError(f"rate_hz is {rate_hz!r}; it can be {RATES_HZ[0]} to {RATES_HZ[1]}")
    if samples.dtype == np.uint8:  # its silence is 128
        samples = (samples.astype(np.int16) - 128) << 8
    kinds = {"int16": "PCM_16", "int32": "PCM_32", "float16": "FLOAT", "float32": "FLOAT", "float64": "FLOAT"}
    kind = kinds.get(samples.dtype.name)
    if kind is None:
        raise UsageError(f"an array of {samples.dtype} is no recording: give float16 to 64, int16, int32 or uint8")
    scaled = samples.astype(np.float32 if kind == "FLOAT" else samples.dtype.newbyteorder("="))  # as soundfile takes it
    content = io.BytesIO()
    soundfile.write(content, scaled, int(rate_hz), kind, format="WAV")
    return content.getvalue()
