"""Files that lie elsewhere: read in place through fsspec, and read again where a connection is lost or stalls.

A URL is of any protocol that fsspec knows (``https``, ``s3``, ``gs``, ``hf``, …). Credentials and end points are found
by each library's own ways, and by fsspec's configuration (``~/.config/fsspec``, ``FSSPEC_S3_…``); none is shown: what
a URL says of a user is left out of every message. Nothing is kept on the disk here: each open file holds up to 32 MiB.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from hebrew_asr.errors import DataError, EnvironmentProblem, UsageError, on_one_line

STALL_S = 60.0
"""A request that takes longer is given up, and made again."""
PAUSE_S = 0.5
"""Before the second try; twice as long before each further one."""
_TRIES = 8
_BLOCK_BYTES, _BLOCKS = 4 << 20, 8
_URL = re.compile(r"[a-z][a-z0-9+.-]+://\S")
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(https?://[^\s?#]*)[?#]\S*")
"""Signs a request, often; of other protocols it is part of a name."""

_Result = TypeVar("_Result")


class NotThere(DataError):
    """There is no such file, folder or bucket."""


def is_url(spec: str) -> bool:
    """Whether something names a file or folder by a protocol."""
    return _URL.match(spec) is not None


def path_of(place: str) -> Path | RemotePath:
    """The path that a text names, here or elsewhere."""
    return RemotePath(place) if is_url(place) else Path(place)


@dataclass(frozen=True)
class RemotePath:
    """As much of a ``pathlib.Path`` as reading a file takes, for a URL."""

    url: str

    def __str__(self) -> str:
        return _shown(self.url)

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rstrip("/").rpartition("/")[2]

    def __truediv__(self, below: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{below}")

    @property
    def parent(self) -> RemotePath:
        """Its folder."""
        return RemotePath(_QUERY.sub(r"\1", self.url).rstrip("/").rpartition("/")[0])

    def relative_to(self, folder: RemotePath) -> str:
        """The path below ``folder``, which it begins with."""
        return str(self).removeprefix(str(folder)).lstrip("/")

    def info(self) -> dict[str, Any]:
        """What its server says of it, in the server's words but for ``size``. Raises as :meth:`open`."""

        def ask() -> dict[str, Any]:
            system, path = _opened(self.url)
            return system.info(path)

        return patiently(str(self), ask)

    def stat(self) -> _Status:
        """Its size. Raises as :meth:`open`."""
        size = self.info()["size"]
        if size is None:
            raise DataError(f"{self}: its server does not say how long it is, so it cannot be read in parts")
        return _Status(size)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open for reading.

        Raises:
            DataError: it is not there, or may not be read.
            EnvironmentProblem: its server does not answer, or a package for its protocol is missing.
            UsageError: nobody knows its protocol.
        """
        assert mode == "rb", mode
        return io.BufferedReader(_Remote(self), _BLOCK_BYTES // 16)

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """All of it, or ``size`` bytes from ``offset`` on, by one request. Raises as :meth:`open`."""

        def ask() -> bytes:
            system, path = _opened(self.url)
            content = system.cat_file(path, **({} if size is None else {"start": offset, "end": offset + size}))
            if size is not None and len(content) != size:
                raise OSError(f"{len(content)} bytes came of {size}")
            return content

        return patiently(str(self), ask)

    def files(self) -> list[RemotePath]:
        """All files below it, sorted, without hidden ones. Raises as :meth:`open`."""
        found, folders, seen = [], [self.url.rstrip("/")], set()
        while folders:  # not fsspec's ``find``, which passes over a folder that it cannot list
            folder = folders.pop()
            seen.add(folder)
            for url, is_folder in patiently(str(RemotePath(folder)), partial(_listed, folder)):
                if not RemotePath(url).name.startswith(".") and url.startswith(f"{folder}/"):
                    (folders if is_folder else found).append(url)
            folders = [one for one in folders if one not in seen]
        return [RemotePath(url) for url in sorted(found)]


@dataclass(frozen=True)
class _Status:
    st_size: int


class _Remote(io.RawIOBase):
    """A file that is opened anew where reading fails."""

    def __init__(self, path: RemotePath):
        self._path, self._at, self._size, self._file = path, 0, path.stat().st_size, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        content = patiently(str(self._path), lambda: self._read(wanted)) if wanted else b""
        buffer[:wanted] = content
        self._at += wanted
        return wanted

    def _read(self, wanted: int) -> bytes:
        file, self._file = self._file, None  # of a file that failed nothing is kept
        if file is None:
            system, path = _opened(self._path.url)
            cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
            file = system.open(path, "rb", block_size=_BLOCK_BYTES, **cache)
        file.seek(self._at)
        content = file.read(wanted)
        if len(content) != wanted:
            raise OSError(f"{len(content)} bytes came of {wanted}")
        self._file = file
        return content


def _shown(text: str) -> str:
    """Without what URLs in it say of a user."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


def _listed(folder: str) -> list[tuple[str, bool]]:
    """What lies in a folder, and whether that is a folder."""
    system, path = _opened(folder + "/" * folder.startswith("http"))
    entries = system.ls(path, detail=True)
    return [(system.unstrip_protocol(one["name"]).rstrip("/"), one["type"] == "directory") for one in entries]


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{url.partition(':')[0]}:// takes a package: pip install 'hebrew-asr[remote]'"
        ) from error
    except ValueError as error:
        raise UsageError(f"{_shown(url)}: {on_one_line(error)}") from error


def patiently(name: str, do: Callable[[], _Result]) -> _Result:
    """Do what takes a connection, again where that fails or stalls, and say so each time.

    Raises:
        NotThere: what is asked for is not there.
        DataError: it may not be read.
        EnvironmentProblem: it failed every time.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _Call(do).result(STALL_S)
        except (DataError, EnvironmentProblem, UsageError):
            raise
        except Exception as error:  # each protocol's library has errors of its own
            _refuse_final(name, error)
            told = f"{type(error).__name__}: {_shown(on_one_line(error))}"
            if not left:
                raise EnvironmentProblem(
                    f"{name} cannot be read, {_TRIES} tries failed, the last by {told}. What is done is kept: run the "
                    "same command again to continue"
                ) from error
            print(
                f"{name}: {told}; reading it again ({_TRIES - left} of {_TRIES} tries failed)",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(PAUSE_S * 2 ** (_TRIES - 1 - left))
    raise AssertionError


def _refuse_final(name: str, error: Exception) -> None:
    """Raise what a further try would not change. Kinds are told by name, since their packages may be missing."""
    # Of HTTP, fsspec says "not found" whatever failed, and the cause has the status, or is a lost connection.
    cause, kind = error.__cause__ or error, type(error).__name__
    status = getattr(cause, "status", None) if type(cause).__module__.startswith("aiohttp") else 404
    told = _shown(on_one_line(cause))
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in kind:
        raise DataError(f"{name} may not be read: {told}. Are its credentials set?") from error
    if isinstance(error, FileNotFoundError) and status in (404, 410):
        raise NotThere(f"{name} is not there") from error
    if kind == "ParamValidationError":
        raise UsageError(f"{name}: {told}") from error


class _Call(Generic[_Result]):
    """Something that is done in a thread of its own, which is left to itself where it stalls."""

    def __init__(self, do: Callable[[], _Result]):
        self._do = do
        self._found: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._found = self._do()
        except BaseException as error:
            self._error = error

    def result(self, limit_s: float) -> _Result:
        self._thread.start()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer in {limit_s:g} s")
        if self._error is not None:
            raise self._error
        return self._found
