"""Files that are either whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from hebrew_asr.errors import HebrewASRError

MOST_NAME_BYTES = 255
"""Bytes of a file's name: NAME_MAX of limits.h, and what all usual file systems take."""


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write ``content`` so that a crash at any moment leaves the old file or the new one, never half of one.

    Args:
        content: a text is written in UTF-8, whatever the locale (:func:`encoded`).
    """
    with atomic(path) as stream:
        stream.write(encoded(content) if isinstance(content, str) else content)


@contextmanager
def atomic(path: str | Path) -> Generator[BinaryIO, None, None]:
    """A stream whose content becomes the file when the block ends, and nothing of which is left if it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process id is a machine's own, and a folder may be several machines'.
    ending = f".{os.getpid()}{secrets.randbelow(10**9):09d}.tmp"
    temporary = path.with_name(fitting_name(f".{path.name}", ending))
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a disk that takes no change tells that of a file that is not there, too
            temporary.unlink()
    sync_folder(path.parent)


@contextmanager
def temporary_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """Where to make a folder in ``parent``, of which nothing is left behind the block.

    It is for blocks in which signals raise: enter this first, then those, and make the folder there. Of
    ``tempfile.TemporaryDirectory`` one stays where a signal raises between its making and its keeping.
    """
    folder = parent / f"{prefix}{secrets.token_hex(16)}"  # nobody else's
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fitting_name(name: str, ending: str) -> str:
    """``name``, as much of it as a file system takes with ``ending``, and ``ending``."""
    while len(os.fsencode(f"{name}{ending}")) > MOST_NAME_BYTES:
        name = name[:-1]
    return f"{name}{ending}"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when it is whole, and is gone if anything is raised.

    All files get the usual mode. What is in an earlier ``folder``, and is not written anew, stays in it. Errors of ours
    and of the operating system name what lies below ``folder``, though it was written elsewhere.
    """
    place = real_path(folder)
    temporary, before = place.with_name(f".tmp-{place.name}"), place.with_name(f".old-{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _complete(temporary, place if place.exists() else before)
        shutil.rmtree(before, ignore_errors=True)
        if place.exists():
            place.rename(before)
        temporary.rename(place)
    except (OSError, HebrewASRError) as error:
        _rename_in(error, str(temporary), str(folder))
        raise
    except Exception as error:
        if "(os error " not in str(error):
            raise
        found = as_os_error(error)  # of a file of weights or of a tokenizer; neither names it
        raise OSError(found.errno, found.strerror, str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(place.parent)
    shutil.rmtree(before, ignore_errors=True)


def _complete(new: Path, earlier: Path) -> None:
    """Give the files of a new folder the usual mode, put them on the disk, and add what only the earlier one holds."""
    for file in new.rglob("*"):
        if file.is_file():
            give_usual_mode(file)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    if earlier.is_dir():
        _keep_others(earlier, new)
    for inside in new.rglob("*/"):
        if not inside.is_symlink():
            sync_folder(inside)
    sync_folder(new)


def _keep_others(old: Path, new: Path) -> None:
    for path in sorted(old.iterdir()):
        other = new / path.name
        if path.is_dir() and not path.is_symlink():
            if other.is_dir() and not other.is_symlink():
                _keep_others(path, other)
            else:
                shutil.copytree(path, other, symlinks=True)  # an error where it is a file by now
        elif not os.path.lexists(other):
            shutil.copy2(path, other, follow_symlinks=False)


def _rename_in(error: OSError | HebrewASRError, written: str, asked: str) -> None:
    """Let an error name the place that was asked for where it names the one that was written to."""
    if isinstance(error, OSError):
        error.filename = str(error.filename or asked).replace(written, asked)
    else:
        error.args = (str(error).replace(written, asked),)


def encoded(text: str) -> bytes:
    """UTF-8, for which file names that are not UTF-8 (and other halves of surrogate pairs) become ``\\udcff``: in JSON
    that reads back as the same name.
    """
    return text.encode(errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, as_json(value))


def from_json(text: str | bytes, object_of: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What JSON says. Raises ValueError for anything else, and where it nests deeper than Python follows.

    Args:
        text: JSON; bytes are UTF-8, UTF-16 or UTF-32.
        object_of: makes each object of its pairs of key and value; a dict unless given.
    """
    try:
        return json.loads(text, object_pairs_hook=object_of)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def values_if_readable(path: Path) -> dict[str, Any]:
    """Of a JSON object; none where there is no such file, or another content."""
    try:
        values = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_lines(path: str | Path, rows: Iterable[Any]) -> str:
    """Write JSON lines atomically; returns their SHA-256, as hex."""
    digest = hashlib.sha256()
    with atomic(path) as stream:
        for row in rows:
            line = encoded(f"{json.dumps(row, ensure_ascii=False)}\n")
            digest.update(line)
            stream.write(line)
    return digest.hexdigest()


def as_json(value: Any) -> str:
    """JSON for people to read."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def as_os_error(error: Exception) -> OSError:
    """What went wrong with a file, as the operating system's error; safetensors gives its number within a text."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        # A folder cannot be made where such a link is, of which the system says only that something is there.
        is_dead = error.errno == errno.EEXIST and not Path(error.filename or ".").exists()
        return OSError(error.errno, f"{'a link that leads nowhere' if is_dead else error.strerror}{where}")
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    number = re.search(r"\(os error (\d+)\)", text)
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(errno.EIO, text)


def disk_fault(error: OSError) -> str | None:
    """What to say of an error by which a disk, its owner or what lies there refused; None for any other."""
    said = as_os_error(error).strerror
    if is_full(error):
        return f"{said}; make room there, or give another place"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):  # a file for a folder, or the reverse
        return f"{said}; give another place"
    refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.EFBIG)
    return f"{said}; give another place, or what this user may use" if error.errno in refused else None


def is_full(error: OSError) -> bool:
    """Whether there was no room, on the disk or in a quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def real_path(path: str | Path) -> Path:
    """Without links, as ``Path.resolve``, which before Python 3.13 raises RuntimeError where one leads to itself."""
    return Path(os.path.realpath(path))


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that there is."""
    real = real_path(path)
    return next(place for place in (real, *real.parents) if place.exists())


def remover_if_empty(folder: Path) -> Callable[[], None]:
    """Removes ``folder``, and those above it, that are not there now, and hold nothing when it is called."""
    folder = folder.absolute()
    absent = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]

    def remove() -> None:
        for one in absent:
            with suppress(OSError):  # it holds something, or was never made
                one.rmdir()

    return remove


def give_usual_mode(path: Path) -> None:
    """Let those read a file who may read its folder: safetensors writes for this user alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def sha256_of(path: Any) -> str:
    """SHA-256 of a file, as hex. ``path``: what opens as a ``pathlib.Path`` does."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def xxh3_of(path: Path) -> str:
    """XXH3 of a file, 128 bits as hex: 7 times as fast as SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


def sync_folder(folder: str | Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def runs_below(folder: Path) -> list[str]:
    """The training runs that a folder holds, by name."""
    return sorted(str(path.parent) for path in folder.glob("*/metrics.jsonl"))


def such_as_runs(folder: Path) -> str:
    """``, such as runs/a, runs/b`` to follow "the folder of a run", where ``folder`` holds some; three at most."""
    found = runs_below(folder)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f", such as {', '.join(found[:3])}{more}" if found else ""
