"""Where sound comes from: a regular file, its bytes, or a stream; and what it is refused for."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hebrew_asr.errors import DataError, EnvironmentProblem


@dataclass(frozen=True, slots=True)
class Part:
    """A recording that is a stretch of a file, as in a shard."""

    path: str
    offset_bytes: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.path}, {self.size_bytes} bytes from {self.offset_bytes} on"

    def read(self, label: str) -> bytes:
        """Its content. Raises AudioError, which names it ``label``."""
        descriptor = _regular_file(self.path, label)
        try:
            content = os.pread(descriptor, self.size_bytes, self.offset_bytes)
        except OSError as error:
            raise AudioError(label, error.strerror or str(error)) from error
        finally:
            os.close(descriptor)
        if len(content) < self.size_bytes:
            raise AudioError(label, "the file ends before it: is it whole?")
        return content


def fetch_ahead(parts: Iterable[Part]) -> None:
    """Have the system read stretches of files into memory, all at once; what cannot be read is told when it is read."""
    by_file = defaultdict[str, list[Part]](list)
    for part in parts:
        by_file[part.path].append(part)
    for path, stretches in by_file.items() if hasattr(os, "posix_fadvise") else ():
        with suppress(AudioError, OSError):
            descriptor = _regular_file(path, path)
            try:
                for part in stretches:
                    os.posix_fadvise(descriptor, part.offset_bytes, part.size_bytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


Source = str | Path | Part | bytes | IO[bytes]
"""Path of a file, a part of one, its content, or an open binary stream such as ``sys.stdin.buffer``."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".oga", ".webm", ".mp4", ".mkv", ".mka", ".mov", ".aac"),
    *(".wma", ".amr", ".aiff", ".aif", ".aifc", ".caf", ".3gp", ".m4b", ".mp2", ".au", ".w64", ".rf64", ".wv", ".ac3"),
    *(".weba", ".m4v", ".avi", ".asf", ".wmv", ".awb", ".3g2", ".m4r", ".qt", ".flv", ".mpg", ".mpeg", ".ts", ".mts"),
    *(".m2ts", ".spx", ".eac3", ".dts", ".tta", ".ape", ".dsf", ".voc", ".sph", ".gsm", ".ra", ".rm"),
    *(".ogv", ".ogm", ".snd", ".vob", ".f4v", ".f4a", ".latm", ".ircam", ".3gpp", ".wave", ".mpga", ".mxf"),
)
"""What is taken for a recording in folders and listings, by its name; whether it is one is the decoder's to say.
Lossless ones first."""

LONGEST_STREAM_BYTES = 4 << 30
"""A stream is copied to a temporary file, since containers are read from both ends; a longer stream is refused."""

_COPY_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class AudioError(DataError):
    """A recording that cannot be used. ``str()`` names the recording; ``cause`` does not."""

    reason = "undecodable audio"
    """In the few words by which prepare counts what it drops."""

    def __init__(self, label: str, cause: str):
        super().__init__(label, cause)
        self.label, self.cause = label, cause

    def __str__(self) -> str:
        return f"cannot use audio {self.label}: {self.cause}"


class TruncatedAudio(AudioError):
    """The sound ends before its container says. Raised after the last block, so that a caller may use what there is."""

    reason = "truncated audio"


class TooLong(AudioError):
    """The sound is longer than the caller takes."""

    reason = "too long"

    def __init__(self, label: str, cause: str, lasts_s: float):
        super().__init__(label, cause)
        self.args = (label, cause, lasts_s)  # what pickle hands to __init__ in another process
        self.lasts_s = lasts_s
        """Seconds that were counted; it may be longer still."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that can be read and sought in."""

    file: IO[bytes]
    size: int
    """Bytes."""
    label: str
    """What errors call it."""
    start: int = 0
    """Byte of the file at which the source begins."""

    def read_at(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``position`` on."""
        self.file.seek(self.start + position)
        return self.file.read(count)

    def since(self, position: int) -> Opened:
        """The source without what it holds before a byte; only for ``read_at``, not for decoders."""
        return replace(self, size=self.size - position, start=self.start + position)


def label_of(source: Source) -> str:
    """What to call a source in an error."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    return str(source) if isinstance(source, str | Path | Part) else str(getattr(source, "name", "<stream>"))


@contextmanager
def opened(source: Source, label: str) -> Generator[Opened, None, None]:
    """Open a source for reading.

    Raises:
        AudioError: the file is missing, unreadable or no regular file, or the stream is too long.
        EnvironmentProblem: there is no room for the copy of a stream.
    """
    if isinstance(source, bytes):
        yield Opened(io.BytesIO(source), len(source), label)
    elif isinstance(source, Part):
        content = source.read(label)
        yield Opened(io.BytesIO(content), len(content), label)
    elif isinstance(source, str | Path):
        # Unbuffered, so that a decoder that takes its descriptor finds it where it was sought to.
        with os.fdopen(_regular_file(source, label), "rb", buffering=0) as file:
            yield Opened(file, os.fstat(file.fileno()).st_size, label)
    else:
        with _copied(source, label) as file:
            yield Opened(file, file.seek(0, os.SEEK_END), label)


def _regular_file(path: str | Path, label: str) -> int:
    """A descriptor that reads it."""
    try:
        # O_NONBLOCK: opening a pipe would otherwise wait for whoever writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AudioError(label, "file not found") from error
    except OSError as error:
        raise AudioError(label, error.strerror or str(error)) from error
    except ValueError as error:  # a NUL byte in the name
        raise AudioError(label, f"no file can have this name: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise AudioError(label, f"it is {kind}, not a regular file")


def _write_all(file: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # an unbuffered file may take less than it is given
        rest = rest[file.write(rest) :]


def _copied(stream: IO[bytes], label: str) -> IO[bytes]:
    copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
    try:
        while block := stream.read(_COPY_BYTES):
            _write_all(copy, block)
            if copy.tell() > LONGEST_STREAM_BYTES:
                raise AudioError(label, f"the stream is longer than {LONGEST_STREAM_BYTES >> 30} GiB")
    except OSError as error:
        copy.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(
                f"no room in {tempfile.gettempdir()} for a copy of {label}: free some, or set TMPDIR to another folder"
            ) from error
        raise AudioError(label, error.strerror or str(error)) from error
    except BaseException:
        copy.close()
        raise
    return copy
