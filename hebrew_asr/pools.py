"""Pools of worker processes that leave Ctrl-C to the process that started them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, resource_tracker
from typing import Any


class Pool(ProcessPoolExecutor):
    """Up to so many processes, started afresh: the caller may hold threads, and a GPU, which no fork survives.

    A terminal sends Ctrl-C to them too. It is blocked from their first moment on: in one that is still importing it
    would be a traceback.
    """

    def __init__(self, processes: int, initializer: Callable[[], None] | None = None):
        super().__init__(processes, get_context("spawn"), initializer)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts a process where all are busy, which inherits what is blocked."""
        resource_tracker.ensure_running()  # starting it unblocks them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
