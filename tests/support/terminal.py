"""A command in a pseudo-terminal of its own, as a person starts it: signals come from the terminal driver."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import psutil
import pyte

CTRL_C = b"\x03"


COLUMNS, LINES = 80, 25
"""What a terminal without a size is taken for."""


def screen(printed: str, columns: int = COLUMNS, lines: int = LINES) -> list[str]:
    """What a person sees after all of ``printed``, below what has scrolled away; no blanks at the ends of lines."""
    shown = pyte.HistoryScreen(columns, lines, history=10_000)
    pyte.Stream(shown).feed(printed.replace("\n", "\r\n"))
    gone = ["".join(row[column].data for column in range(columns)) for row in shown.history.top]
    return [line.rstrip() for line in [*gone, *shown.display]]


class Terminal:
    """A session whose terminal we hold the other end of; what is printed on it is kept."""

    def __init__(self, line: list[str], *, environment: dict[str, str], folder: Path):
        """Start ``line``, in the foreground of the terminal."""
        self._master, slave = os.openpty()
        self._printed = bytearray()

        def own_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # whatever the tests were started with
                signal.signal(number, signal.SIG_DFL)

        self.process = subprocess.Popen(
            line, env=environment, cwd=folder, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_the_terminal
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """Printed so far."""
        return self._printed.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """As a connection that drops: the terminal is gone, and the kernel sends SIGHUP."""
        master, self._master = self._master, -1
        os.close(master)

    def drain(self) -> None:
        """Wait for the last that was printed, when no process has the terminal open any more."""
        self._reader.join(timeout=10)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while True:
                self._printed += os.read(self._master, 65536)


def processes_of(marker: str) -> list[psutil.Process]:
    """Running processes with ``marker`` among their arguments: a job's launchers, ranks and loaders."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and marker in (process.info["cmdline"] or []):
            found.append(process)
    return found


def wait_until_gone(marker: str, limit_s: float) -> float:
    """Seconds until no process of a job is left."""
    started = time.monotonic()
    while left := processes_of(marker):
        assert time.monotonic() - started < limit_s, [process.cmdline()[:5] for process in left]
        time.sleep(0.05)
    return time.monotonic() - started
