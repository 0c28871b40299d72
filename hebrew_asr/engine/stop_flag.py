"""The ranks stop together: at a step's end they agree whether any of them was asked, by a signal or a file ``STOP``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.launching.stopping import StopRequest

_LOOK_EVERY_S = 0.5
"""How often the file is looked for: at every step, a slow file system would take a share of the step."""


class StopFlag:
    """Whether any rank was asked to stop."""

    def __init__(self, run_folder: Path, ranks: Ranks, request: StopRequest):
        """``request``: this process's."""
        self.request = request
        self._file, self._ranks = run_folder / "STOP", ranks
        self._next_look = 0.0

    def is_raised(self) -> bool:
        """Whether this rank was asked to stop."""
        if self.request.reason is None and self._ranks.is_main and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            if os.path.exists(self._file):  # noqa: PTH110 -- Path.exists raises where a disk is ill
                self.request.ask(f"file {self._file}")
        return self.request.reason is not None

    def agreed(self) -> bool:
        """Whether any rank was asked to stop: the same answer on every rank; collective."""
        return self._ranks.any(self.is_raised())

    def leaves_empty_handed(self) -> bool:
        """Whether this rank was asked to stop, and has trained nothing that could be lost."""
        return self.request.reason is not None and not self.request.unsaved
