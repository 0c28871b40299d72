"""How ``hebrew-asr train`` learns its ranks' process ids and exit codes; those of DeepSpeed's launcher say little.

The ranks tell it over a socket, which neither a full disk stops, nor whoever clears the temporary folder that it was
made in. The variable ``HEBREW_ASR_JOB`` names that folder, and the process that made it (``processes.py``).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hebrew_asr.launching.processes import JOB_VARIABLE

_PATIENCE_S = 5.0
"""For a ``hebrew-asr`` that does not listen, because Ctrl-Z stopped it."""


class Job:
    """Of a rank: what it tells."""

    def __init__(self, folder: Path | None):
        """``folder``: None for ranks that another launcher started; then nothing is told."""
        self._socket: socket.socket | None = None
        if folder is not None:
            with contextlib.suppress(OSError), _address(folder) as address:  # hebrew-asr was killed, and it is gone
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(_PATIENCE_S)
                self._socket.connect(address)

    @classmethod
    def of_this_rank(cls) -> Job:
        """That of the job this process belongs to, if ``hebrew-asr`` started it."""
        folder = os.environ.get(JOB_VARIABLE, "").partition(":")[2]
        return cls(Path(folder) if folder else None)

    def join(self) -> None:
        """This rank can take signals from here on."""
        self._tell("pid", os.getpid())

    def report(self, code: int) -> None:
        """This rank leaves with ``code``."""
        self._tell("code", code)

    def follow(self) -> None:
        """This rank leaves because another is gone."""
        self._tell("follows")

    def _tell(self, kind: str, value: int = 0) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # hebrew-asr was killed
                self._socket.send(f"{os.environ.get('RANK', '0')} {kind} {value}".encode())


class Told:
    """Of ``hebrew-asr train``: what the ranks told it."""

    def __init__(self, folder: Path):
        """``folder``: this user's alone, which the ranks find in ``HEBREW_ASR_JOB``."""
        self._by_rank: dict[str, dict[int, int]] = {"pid": {}, "code": {}, "follows": {}}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        with _address(folder) as address:
            self._socket.bind(address)

    def pids(self) -> dict[int, int]:
        """Process ids of the ranks that have joined."""
        return self._read("pid")

    def codes(self) -> dict[int, int]:
        """Exit codes of the ranks that have left by themselves."""
        return self._read("code")

    def followers(self) -> set[int]:
        """Ranks that have left because another was gone."""
        return {*self._read("follows")}

    def _read(self, kind: str) -> dict[int, int]:
        with contextlib.suppress(BlockingIOError):
            while True:
                rank, said, value = self._socket.recv(64).decode().split()
                self._by_rank[said][int(rank)] = int(value)
        return self._by_rank[kind]


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Of the socket in a folder, short enough for one (108 bytes) wherever the folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}/ranks"
    finally:
        os.close(handle)
