"""A lock on a folder, so that one process at a time writes there. The kernel frees it however its holder ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from hebrew_asr.errors import EnvironmentProblem, UsageError
from hebrew_asr.files import from_json, remover_if_empty
from hebrew_asr.logs import log

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
_PATIENCE_S = 2.0
"""Seconds to try again: a process that only looks whether a lock is held shares it for an instant, and one that has
just taken it from a killed holder has yet to sign."""


class FolderLock:
    """The lock of a folder, in a file that says who holds it.

    It is a POSIX record lock (fcntl(2)): the kernel frees it however the holder ends, a child process does not inherit
    it, and NFS carries it from host to host. A file that a killed holder left is no obstacle.
    """

    def __init__(self, path: Path):
        """``path``: of the lock's file, in the folder or below it; made when the lock is taken."""
        self.path = path
        self._stream: TextIO | None = None
        self._remove_if_empty: Callable[[], object] = lambda: None
        self._changing = threading.Lock()  # a file that is closed meanwhile may have given its number to another

    def take(self, *, wait: bool = False) -> bool:
        """Take the lock; False if another process has it and ``wait`` does not say to wait for it.

        On a file system without locks the folder is used without, and a line on stderr says so.
        """
        self._remove_if_empty = remover_if_empty(self.path.parent)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            stream = self._open()
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                stream.close()
                if error.errno in _UNSUPPORTED:
                    self._warn(error)
                    return True
                if error.errno not in _HELD:
                    raise
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
                continue
            if os.fstat(stream.fileno()).st_nlink:
                self._stream = stream
                self._sign(stream)
                return True
            stream.close()  # the last holder deleted it, and a lock on a deleted file guards nothing

    def _open(self) -> TextIO:
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self.path.open("a+", encoding="utf-8")
            except FileNotFoundError:  # the last holder deleted the folder since
                continue

    def will_be_free(self) -> None:
        """Say so in the lock's file: its holder was asked to stop, so others wait for it instead of being refused."""
        with self._changing:
            if self._stream is not None:
                self._sign(self._stream, leaves=True)

    def release(self) -> None:
        """Give it back, and delete its file, and of the folders made for it those with nothing else in them.

        If the folder was moved, and another process has locked a new one of its name, that one's file stays.
        """
        with self._changing:
            if self._stream is None:
                return
            with contextlib.suppress(OSError):  # the folder is gone, or cannot be written
                if os.path.samestat(self.path.stat(), os.fstat(self._stream.fileno())):
                    self.path.unlink()
            self._remove_if_empty()
            self._stream.close()
            self._stream = None

    def holder(self) -> dict[str, Any] | None:
        """Who holds it, if another process does: ``host``, ``pid``, ``command`` and ``job``, as far as is known.

        Not for the process that holds it: closing any other handle of the file would free its lock (fcntl(2)).
        """
        try:
            with self.path.open(encoding="utf-8") as stream:
                try:
                    fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError as error:
                    return None if error.errno in _UNSUPPORTED else _read(stream)
        except OSError:  # not there; taking the lock reports any other fault of the disk
            pass
        return None

    def refuse_if_held(self, what: str, *, is_main: bool) -> None:
        """Refuse to go on beside another process; to ranks but the first, the first of their job is no other.

        One that was asked to stop and is saving its state is waited for, and the first rank says so.

        Raises:
            UsageError: naming the holder.
        """
        deadline, is_told = time.monotonic() + _PATIENCE_S, False
        while (holder := self.holder()) is not None:
            is_fellow = not is_main and job() is not None and holder.get("job", job()) == job()
            if holder.get("leaves"):  # of its own job, or of the last one at the same port
                if is_main and not is_told:
                    log.info("%s: waiting for %s, which was asked to stop, to save its state", what, describe(holder))
                deadline, is_told = time.monotonic() + _PATIENCE_S, True
            elif is_fellow:
                return
            elif (is_main and holder) or time.monotonic() > deadline:  # an empty one is being written
                raise _busy(what, holder)
            time.sleep(0.05)

    def take_or_refuse(self, what: str) -> None:
        """Take it.

        Raises:
            UsageError: another process has it; names the holder.
            EnvironmentProblem: the disk cannot be written.
        """
        try:
            taken = self.take()
        except OSError as error:
            raise EnvironmentProblem(f"cannot write into {what}: {error.strerror}; choose another folder") from error
        if not taken:
            raise _busy(what, self.holder() or {})

    def _sign(self, stream: TextIO, *, leaves: bool = False) -> None:
        command = " ".join(sys.orig_argv[:3])
        who = {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "job": job(), "leaves": leaves}
        with contextlib.suppress(OSError):  # a full disk: the lock is held, its file does not say by whom
            os.ftruncate(stream.fileno(), 0)
            os.pwrite(stream.fileno(), f"{json.dumps(who)}\n".encode(), 0)

    def _warn(self, error: OSError) -> None:
        log.warning(
            "the file system of %s has no locks (%s): a second process that writes there would not be noticed",
            *(self.path.parent, error.strerror),
        )


def job() -> str | None:
    """Where the ranks of this process's job meet; the same for all of them. None outside a job."""
    place = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    return None if None in place else ":".join(map(str, place))


def _busy(what: str, holder: dict[str, Any]) -> UsageError:
    return UsageError(f"{what} is in use by {describe(holder)}; stop that first, or name another folder")


def describe(holder: dict[str, Any]) -> str:
    """A holder in words."""
    if not holder:
        return "another process"
    return f"{holder['command']} (pid {holder['pid']} on {holder['host']})"


def _read(stream: TextIO) -> dict[str, Any]:
    """Its content; nothing while the holder is still writing it, and where another program has."""
    try:
        found = from_json(stream.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"host", "pid", "command"} <= found.keys() else {}
