"""Requests to stop from outside: a signal, or the end of the launcher that started this process.

A thread listens, so that a request is noticed while the main thread is in a library that takes minutes (a compiler,
ranks that wait for each other). As long as no training could be lost, the thread ends the process itself. Later it
only sets a flag: the trainer saves, and then leaves.

Signals within ``GRACE_S`` of the first one are the same request: a Ctrl-C reaches a rank as SIGINT from the terminal
and again as SIGTERM from DeepSpeed's launcher, and a lost terminal adds SIGHUP. A SIGINT after that leaves without
saving.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from hebrew_asr.errors import STOP_SIGNALS, Preempted, end_at_once, flush_s
from hebrew_asr.launching.processes import Launchers

GRACE_S = 5.0
"""Seconds after the first signal in which further ones are the same request."""
AGREE_S = 5.0
"""Seconds that the ranks have to agree on stopping, while nothing could be lost without that."""
_SLOW_S = 2.0
"""A stop that takes longer than this says what it waits for."""
_LOOK_S, _LOOK_WHEN_ASKED_S = 1.0, 0.1
IMPATIENT = 130  # as a shell reports a process that died of SIGINT
NAMES = {number: number.name for number in STOP_SIGNALS} | {signal.SIGINT: "Ctrl-C"}
"""Of the signals that ask for a stop."""


class StopRequest:
    """Whether this process was asked to stop, and what becomes of it if so."""

    def __init__(self, *, prints: bool = True, resumes: bool = True, report: Callable[[int], object] = lambda _: None):
        """Nothing is caught before ``install``.

        Args:
            prints: whether this process prints, for all ranks.
            resumes: as for :func:`nothing_to_save`.
            report: called with the exit code before the thread ends the process.
        """
        self.reason: str | None = None
        """What asked for the stop; None while nothing did."""
        self.unsaved = False
        """Whether leaving at once would lose training."""
        self.patience_s: float | None = None
        """Seconds until the launcher kills this process after it passed a request on; None if it never does."""
        self.cleanups: list[Callable[[], object]] = []
        """Called before ``report``."""
        self.on_ask: list[Callable[[], object]] = []
        """Called once, when the stop is asked for, by whichever thread notices."""
        self.explain: Callable[[], str] = lambda: "stopping"
        """Says what a slow stop is waiting for."""
        self.resumes = resumes
        self._prints, self._report = prints, report
        self._stderr = sys.stderr
        self._met = self._explained = False
        self._code: int | None = None
        self._asked_s = self._heard_s = 0.0

    def install(self) -> None:
        """Listen from here to the end of the process, but not to signals that were ignored when it started (nohup)."""
        self._pipe, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        for number in NAMES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # the thread hears of it, through the pipe
        self._launchers = Launchers()
        self.patience_s = self._launchers.patience_s
        threading.Thread(target=self._listen, name="stop", daemon=True).start()

    def ask(self, reason: str = "another rank was asked") -> None:
        """Ask this process to stop; what comes after the first time changes nothing."""
        if self.reason is None:
            self._asked_s = time.monotonic()
            self.reason = reason
            for act in self.on_ask:
                act()

    def met(self) -> None:
        """The process group exists: from now on the others would wait for a rank that left alone."""
        self._met = True

    def leaving(self, code: int) -> None:
        """The process is about to end by itself, with ``code``: only a second Ctrl-C ends it earlier."""
        self._code = code

    def leave_measurement(self) -> NoReturn:
        """End a measurement that the ranks agreed to stop: whoever was not asked itself is, so that all say the same.

        Raises Preempted, always.
        """
        self.ask()
        self.leaving(Preempted.exit_code)
        raise Preempted(nothing_to_save(self.reason, resumes=False))

    def _listen(self) -> None:
        while True:
            pace = _LOOK_S if self.reason is None else _LOOK_WHEN_ASKED_S
            ready, _, _ = select.select([self._pipe], [], [], pace)
            for number in os.read(self._pipe, 256) if ready else b"":
                if number in NAMES:
                    self._hear(number)
            gone = self._launchers.gone() if self.reason is None else None
            if gone is not None:
                self.ask(f"{gone} is gone")
            if self.reason is not None and self._code is None:
                self._act(time.monotonic() - self._asked_s)

    def _hear(self, number: int) -> None:
        self._heard_s = time.monotonic()
        if self.reason is None:
            self.ask(NAMES[signal.Signals(number)])
        elif number == signal.SIGINT and time.monotonic() - self._asked_s > GRACE_S:
            lost = "the steps since the last checkpoint are lost" if self.unsaved else "nothing is lost"
            self._leave(self._code or IMPATIENT, f"left at once, as Ctrl-C asked again; {lost}")

    def _act(self, waited_s: float) -> None:
        if not self.unsaved and (not self._met or waited_s > AGREE_S):
            self._leave(Preempted.exit_code, nothing_to_save(self.reason, resumes=self.resumes))
        if waited_s > _SLOW_S and not self._explained:
            self._explained = True
            self.say(f"asked to stop ({self.reason}): {self.explain()}")

    def _leave(self, code: int, text: str) -> None:
        self.say(text)
        for cleanup in self.cleanups:
            cleanup()
        self._report(code)
        end_at_once(code)

    def say(self, text: str) -> None:
        """Print a line, if this process prints for all ranks."""
        if self._prints:
            is_collected = isinstance(sys.stderr, io.StringIO)  # as while options are parsed (config/options.py)
            stream = self._stderr if is_collected else sys.stderr
            time.sleep(max(0.0, self._heard_s + flush_s(stream) - time.monotonic()))
            print(text, file=stream, flush=True)


def nothing_to_save(reason: str | None, *, resumes: bool = True) -> str:
    """Said where a start ends that has trained nothing, or nothing since its last checkpoint.

    Args:
        reason: what asked for the stop.
        resumes: False for a measurement, which has no checkpoints.
    """
    if not resumes:
        return f"stopped ({reason}): nothing is kept of a measurement"
    return f"stopped ({reason}): there is nothing to save since the last checkpoint or the start; --resume auto goes on"
