"""The page of a run while it trains: written anew by a process of its own, which training does not wait for."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from hebrew_asr.logs import log
from hebrew_asr.report.records import EvalRecord, FaultRecord, Record

_AFTER_S, _AFTER_EVALUATION_S = 30.0, 5.0
"""Least seconds from the start of one writing to the next: usually, and after an evaluation."""
_SHARE = 20
"""A writing takes at most one part in so many of the time."""
_LAST_S = 10.0
"""Most seconds that the end of training waits for the page. One that takes longer is finished nonetheless."""
_WRITES = "import os, sys; os.nice(19); from hebrew_asr.cli import main; sys.exit(main(['report', sys.argv[1]]))"


class LivePage:
    """A tracker sink that has ``hebrew-asr report`` write the page of the run that far.

    A page that cannot be written is a fault on record, once for each reason, and is tried again.
    """

    def __init__(self, run: Path, record_fault: Callable[[FaultRecord], None]):
        """``run``: its directory; ``record_fault``: writes to the tracker that this is a sink of."""
        self._run, self._record_fault = run, record_fault
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._began, self._took_s = -math.inf, 0.0
        self._step, self._reasons = 0, set[str]()
        log.info("a page to watch, in a browser: %s", (run / "report.html").resolve())

    def write(self, record: Record) -> None:
        """Start a writing if it is time for one, and see how the one before ended."""
        self._step = record.step
        if self._is_writing():
            return
        pause_s = _AFTER_EVALUATION_S if isinstance(record, EvalRecord) else _AFTER_S
        if time.monotonic() - self._began >= max(pause_s, _SHARE * self._took_s):
            self._begin()

    def close(self) -> None:
        """Have it written as the run is now; waits for that, but not long."""
        deadline = time.monotonic() + _LAST_S
        self._wait(deadline)
        if self._process is None:
            self._begin()
            self._wait(deadline)

    def _begin(self) -> None:
        self._began = time.monotonic()
        command = [sys.executable, "-P", "-c", _WRITES, str(self._run)]
        root = str(Path(__file__).parents[2])
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- read when the process has ended
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is for training
            )
        except OSError as error:
            self._fault(f"{error.strerror or error}")

    def _is_writing(self) -> bool:
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            return True
        self._process, self._took_s = None, time.monotonic() - self._began
        if code:
            assert self._said is not None
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
            self._fault(said[-1] if said else f"its process ended with code {code}")
        return False

    def _wait(self, deadline: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, deadline - time.monotonic()))
            self._is_writing()

    def _fault(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            told = f"{self._run / 'report.html'} is not written while the run trains: {reason}"
            self._record_fault(FaultRecord(step=self._step, kind="report", reasons=[told]))
