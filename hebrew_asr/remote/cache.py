"""Sets at URLs. Their tables are brought to this machine, and the sound that is read of their shards stays here too.

The cache is ``$XDG_CACHE_HOME/hebrew_asr/sets``, else ``~/.cache/hebrew_asr/sets``, and all processes of a machine
share it. A shard is not brought whole, since training draws clips from all shards at once: each clip is asked for by
itself, many at a time, and lands at its own place in a sparse file. A file of digests beside it tells which clips are
there. A clip that was written by half, or is of a set that was made anew at the same URL, does not match and is read
again.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from hebrew_asr.errors import DataError, HebrewASRError, UsageError
from hebrew_asr.files import atomic, from_json, values_if_readable, write_json
from hebrew_asr.logs import log
from hebrew_asr.remote.paths import NotThere, RemotePath, is_url

Stretch = tuple[str, int, int]
"""URL of a file, first byte, and bytes; 0 bytes are the whole file."""

IN_USE_S = 600.0
"""A shard that was read within this time stays. A run reads all of its shards in random order, so that what a full
cache holds is worth as much as what would replace it."""
_TOUCH_S = 60.0
_AT_ONCE = 16
_GIB = "HEBREW_ASR_CACHE_GIB"
_DEFAULT_GIB = 100.0
SPARE = 1 / 20
"""Share of its disk that the cache leaves free."""
_SLOT_BYTES, _DIGEST_BYTES = 1024, 16
"""A clip's digest stands at the place that its first byte has in its shard, 64 times as near to the start. Of two clips
within 1,024 bytes one is not kept."""
_BLOCK_BYTES = 4096
"""Of a file system: a stretch takes up to two more than it fills, and its digest one."""
_TABLES = tuple(f"{side}.{kind}" for side in ("train", "eval") for kind in ("jsonl", "arrow"))
_ALSO = ("manifest.json", "_SUCCESS")
_IDENTITY = (
    "size",
    "etag",
    "lastmodified",
    "mtime",
    "updated",
    "generation",
    "md5hash",
    "contentmd5",
    "digest",
    "blobid",
)
_KNOWN = "brought.json"

FULL_S = 30.0
"""How long a process that found the cache full tries to keep nothing: counting what is there takes its time."""

_ahead: dict[Stretch, bytes | HebrewASRError] = {}
_full_until: dict[Path, float] = {}
"""By the cache's folder."""
_touched: dict[Path, float] = {}


def limit_cache(gib: float) -> None:
    """Bound the cache for this process and those that it starts. The tables of sets do not count."""
    os.environ[_GIB] = str(gib)


def cache_folder() -> Path:
    """Where all of it lies."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hebrew_asr" / "sets"


def set_folder(place: str | Path, *, ask: bool = True) -> Path:
    """The folder of a set's tables: of a URL, one in the cache, where they are brought if they changed.

    Args:
        place: folder or URL of a prepared set.
        ask: whether its server is asked; else the tables are those that were brought last, if any were.

    Raises:
        UsageError: the URL holds credentials, or there is no set; or, where ``ask``, the place is a file.
        DataError: it may not be read, or changes while it is read.
        EnvironmentProblem: its server does not answer, a package for its protocol is missing, or the disk is full.
    """
    if not is_url(str(place)):
        if (folder := Path(place)).is_file() and ask:
            first = "" if folder.stem in ("train", "eval") else "name it train.jsonl and "
            raise UsageError(f"{place} is a file, and a set is a folder: {first}give {folder.parent}")
        return folder
    url = str(place).rstrip("/")
    if str(RemotePath(url)) != url:
        raise UsageError(
            f"{RemotePath(url)}: a set's URL is written into the records of a run, so it must hold neither user, "
            "password nor signature; give these in the way of its library (AWS_PROFILE, ~/.config/fsspec, …)"
        )
    folder = _tables_of(url)
    if ask:
        _bring_all(RemotePath(url), folder)
    return folder


def set_of_run(run: Path, written: str, *, ask: bool = True) -> Path:
    """:func:`set_folder` of the set that a run was trained on, for a command in any folder.

    Args:
        run: the run directory, whose ``run.json`` knows where training found the set.
        written: its place by the recipe, which counts if nothing is there, and of runs that do not know it.
        ask: as of :func:`set_folder`.
    """
    found = values_if_readable(run / "run.json").get("data_folder")
    return set_folder(found if isinstance(found, str) and Path(found).is_dir() else written, ask=ask)


def origin_of(folder: Path) -> str | None:
    """The URL of the set whose tables lie in a folder of the cache; None for any other folder."""
    known = folder / _KNOWN
    if not (folder.is_relative_to(cache_folder()) and known.is_file()):
        return None
    return from_json(known.read_text(encoding="utf-8"))["url"]


def _bring_all(url: RemotePath, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        known = _known(folder)
        found = [name for name in (*_TABLES, *_ALSO) if _bring(url / name, folder / name, known)]
        if not {*found} & {*_TABLES}:
            raise UsageError(f"{url} holds no prepared set: neither train.jsonl nor train.arrow is there")
        write_json(folder / _KNOWN, {"url": str(url), "files": known})
    _version.cache_clear()


def _known(folder: Path) -> dict[str, Any]:
    try:
        return from_json((folder / _KNOWN).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return {}


def _bring(source: RemotePath, target: Path, known: dict[str, Any]) -> bool:
    """Bring a file unless it is here already; whether there is one."""
    try:
        identity = _identity(source)
    except NotThere:
        target.unlink(missing_ok=True)
        known.pop(target.name, None)
        return False
    before = known.get(target.name, {})
    if target.is_file() and before.get("identity") == identity and len(identity) > 1:
        return True
    digest = xxhash.xxh3_128()
    with source.open() as stream, atomic(target) as copy:
        while block := stream.read(1 << 20):
            digest.update(block)
            copy.write(block)
    if _identity(source) != identity:
        raise DataError(f"{source} changed while it was read: somebody writes to it; try again")
    known[target.name] = {"identity": identity, "digest": digest.hexdigest()}
    return True


def _identity(path: RemotePath) -> dict[str, str]:
    """By which a change of a file is seen; of a server that tells no more than its size, not by that alone."""
    plain = {re.sub(r"\W|_", "", name).lower(): value for name, value in path.info().items()}
    return {name: str(plain[name]) for name in _IDENTITY if plain.get(name) is not None}


def read_stretch(url: str, offset: int, size: int) -> bytes:
    """A stretch of a file: from the cache, or from its server, and then the cache keeps it if it is of a shard.

    Raises:
        DataError: it is not there, or may not be read.
        EnvironmentProblem: its server does not answer, or a package for its protocol is missing.
    """
    found = _ahead.pop((url, offset, size), None)
    if isinstance(found, HebrewASRError):
        raise found
    return _read((url, offset, size)) if found is None else found


def read_ahead(stretches: Iterable[Stretch]) -> None:
    """Read several at once into memory, for the calls of :func:`read_stretch` that follow, which raise what fails.

    What an earlier call has left there is dropped.
    """
    _ahead.clear()
    wanted = list(dict.fromkeys(stretches))
    if len(wanted) < 2:
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(wanted)), thread_name_prefix="clip") as pool:
        _ahead.update(zip(wanted, pool.map(_read_or_error, wanted), strict=True))


def _read_or_error(stretch: Stretch) -> bytes | HebrewASRError:
    try:
        return _read(stretch)
    except HebrewASRError as error:
        return error


def _read(stretch: Stretch) -> bytes:
    url, offset, size = stretch
    if not size:
        return RemotePath(url).read()
    kept = _Kept(stretch)
    content = kept.read()
    if content is None:
        content = RemotePath(url).read(offset, size)
        kept.write(content)
    return content


class _Kept:
    """A stretch of a shard as the cache keeps it."""

    def __init__(self, stretch: Stretch):
        self._stretch = stretch
        self._url, self._offset, self._size = stretch
        self._seed = f"{self._offset} {self._size} {_version(self._url)} {self._url}".encode()
        self._file = cache_folder() / "sound" / xxhash.xxh3_128_hexdigest(self._url.encode())
        self._sums = self._file.with_suffix(".sums")
        self._slot = self._offset // _SLOT_BYTES * _DIGEST_BYTES

    def read(self) -> bytes | None:
        """Its content, if it is here."""
        try:
            with self._sums.open("rb", buffering=0) as sums, self._file.open("rb", buffering=0) as file:
                said = os.pread(sums.fileno(), _DIGEST_BYTES, self._slot)
                content = os.pread(file.fileno(), self._size, self._offset) if said.strip(b"\0") else b""
        except OSError:
            return None
        if not content or said != self._digest(content):
            return None
        if time.monotonic() - _touched.get(self._sums, -_TOUCH_S) >= _TOUCH_S:
            _touched[self._sums] = time.monotonic()
            _quietly(lambda: os.utime(self._sums))
        return content

    def write(self, content: bytes) -> None:
        """Keep it, where there is room."""
        folder = self._file.parent
        if time.monotonic() < _full_until.get(folder, 0):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / "lock") as lock:
                if not _has_room(lock, len(content) + 3 * _BLOCK_BYTES):
                    _full_until[folder] = time.monotonic() + FULL_S
                else:
                    _write_at(self._file, self._offset, content)
                    _write_at(self._sums, self._slot, self._digest(content))
        except OSError as error:
            _tell_once(f"what is read from URLs is not kept in {folder}: {error.strerror or error}")

    def _digest(self, content: bytes) -> bytes:
        digest = xxhash.xxh3_128(self._seed)
        digest.update(content)
        return digest.digest()


def _has_room(lock: int, need: int) -> bool:
    """Whether there is room for so many bytes more, and they are counted then; shards that nobody reads make room.

    ``lock``: its file holds the number of bytes that are kept.
    """
    folder = cache_folder() / "sound"
    limit = int(float(os.environ.get(_GIB, _DEFAULT_GIB)) * (1 << 30))
    disk = shutil.disk_usage(folder)
    limit_now = disk.free - int(disk.total * SPARE)
    counted = os.pread(lock, 20, 0)
    used = int(counted) if counted.strip().isdigit() else limit  # none yet, or zeros after a power cut: count anew
    if need > limit_now or used + need > limit:
        now, found = time.time(), ((sums.stat().st_mtime, sums) for sums in folder.glob("*.sums"))
        # A time to come is of a clock that was wrong, and no sign of use.
        shards = sorted((0.0 if touched > now + IN_USE_S else touched, sums) for touched, sums in found)
        sizes = {sums: _bytes_on_disk(sums) + _bytes_on_disk(sums.with_suffix("")) for _, sums in shards}
        used = sum(sizes.values())
        for touched, sums in shards:
            if (used + need <= limit and need <= limit_now) or touched > now - IN_USE_S:
                break
            sums.unlink()
            sums.with_suffix("").unlink(missing_ok=True)
            used, limit_now = used - sizes[sums], limit_now + sizes[sums]
    has_room = used + need <= limit and need <= limit_now
    if need > limit_now:
        _tell_once(f"what is read from URLs is not kept in {folder}: less than {SPARE:.0%} of its disk is free")
    os.pwrite(lock, b"%-20d" % (used + need * has_room), 0)
    return has_room


def _bytes_on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _write_at(path: Path, offset: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.pwrite(descriptor, content, offset) < len(content):
            raise OSError("the disk is full")
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """One process at a time, where the file system has locks; the kernel frees it however its holder ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _quietly(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX))
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _version(url: str) -> str:
    """Of the set that a file belongs to, so that nothing of one that was there before is taken for it."""
    place = RemotePath(url)
    while re.search("://.", place.url):
        known = _known(_tables_of(place.url))
        if known:
            return " ".join(known[name]["digest"] for name in _TABLES if name in known)
        place = place.parent
    return ""


def _tables_of(url: str) -> Path:
    scheme, _, rest = url.partition("://")
    return cache_folder().joinpath("tables", scheme, *(part for part in rest.split("/") if part not in ("", ".", "..")))


def _quietly(do: Any) -> None:
    with suppress(OSError):
        do()


@cache
def _tell_once(text: str) -> None:
    log.warning("%s", text)
