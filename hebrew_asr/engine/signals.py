"""Asked to stop: SIGTERM, SIGINT or a ``STOP`` file set a flag; ranks agree on it at a step's end."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from hebrew_asr.engine.dist import Ranks

_LOOK_EVERY_S = 0.5
"""Pace at which the file is looked for: asked at every step, a slow file system would cost a share of it."""


class StopFlag:
    """Whether any rank was asked to stop. A second signal of the same kind ends the process at once."""

    def __init__(self, run_folder: Path, ranks: Ranks):
        """Signals are caught between ``install`` and ``restore``."""
        self._file, self._ranks = run_folder / "STOP", ranks
        self._raised, self._next_look = False, 0.0
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Catch SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._raised:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._raised = True

    def is_raised(self) -> bool:
        """Whether this rank was asked to stop."""
        if not self._raised and self._ranks.is_main and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._raised = self._file.exists()
        return self._raised

    def agreed(self) -> bool:
        """Whether any rank was, the same answer on every rank; collective."""
        return self._ranks.any(self.is_raised())
