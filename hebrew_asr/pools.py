"""Pools of worker processes that leave a terminal's signals to the process that started them, and do not outlive it."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from hebrew_asr.cores import loading_modules
from hebrew_asr.errors import EnvironmentProblem, end_children

_PACE_S = 0.5
"""How often a shutdown looks whether a worker was killed."""


class Pool(ProcessPoolExecutor):
    """Up to so many processes, started afresh: the caller may hold threads, and a GPU, which no fork survives.

    A terminal sends Ctrl-C to them too, and SIGHUP when it is closed. Both are blocked from their first moment on: in
    one that is still importing Ctrl-C would be a traceback.
    """

    def __init__(self, processes: int, initializer: Callable[[], None] | None = None):
        start_tracker()
        # By its name: it would be loaded before anything can be done about it.
        begin = (f"{initializer.__module__}:{initializer.__qualname__}",) if initializer else ()
        super().__init__(processes, get_context("spawn"), _begin, begin)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts a process where all are busy, which inherits what is blocked."""
        start_tracker()  # if it has ended
        with _blocked(signal.SIGINT, signal.SIGHUP):
            return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """After a worker has ended unasked, Python's own could wait for ever, for four reasons that are met here.

        One that is killed during the shutdown may have held the lock behind which the others would hear of it. Before
        3.11.5 Python's thread may be writing to workers that are gone (cpython#94777); and a worker that was being
        started at that moment is told nothing. And where Ctrl-C ends the wait, Python may take its thread for ended,
        close the pipe to the workers before each is told to leave, and wait for them at its own end.
        """
        if self._broken:
            calls = vars(self)["_call_queue"]
            if sys.version_info < (3, 11, 5) and calls is not None:
                with contextlib.suppress(OSError):  # which its thread may be closing
                    calls._reader.close()
        processes, thread = [*(self._processes or {}).values()], vars(self)["_executor_manager_thread"]
        try:
            super().shutdown(False, cancel_futures=cancel_futures)
            while True:
                if self._broken or any(map(_was_killed, processes)):
                    for process in processes:
                        process.terminate()
                if not wait or thread is None or not thread.is_alive():
                    break
                thread.join(_PACE_S)
        except KeyboardInterrupt:  # again: what they are at is given up, so that none writes after its caller has ended
            end_children()
            raise

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        """Raises EnvironmentProblem where the block ended since a worker had."""
        super().__exit__(exc_type, exc_val, exc_tb)
        if isinstance(exc_val, BrokenProcessPool):
            raise EnvironmentProblem(
                "a worker process was killed, perhaps for want of memory, or crashed: run the command again, with "
                "fewer processes if need be (--processes, or taskset where there is no such option)"
            ) from exc_val


def _was_killed(process: BaseProcess) -> bool:
    """Whether a signal has ended it; whoever waits for it is still told so."""
    try:
        ended = os.waitid(os.P_PID, process.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the pool's thread was told, and has it, or is about to
        return (process.exitcode or 0) < 0
    return ended is not None and ended.si_code != os.CLD_EXITED


def start_tracker() -> None:
    """Python's own process that counts semaphores: it ignores Ctrl-C, and SIGHUP if it is started here."""
    with _blocked(signal.SIGHUP):
        resource_tracker.ensure_running()  # not while Ctrl-C is blocked, which it unblocks


@contextlib.contextmanager
def _blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Processes that are started meanwhile do not hear of these signals, nor does this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_the_parent() -> None:
    """End this process, which multiprocessing spawned, when its parent ends, even one that is killed.

    The kernel can do so too (prctl), but would as soon as the thread ends that started this process.
    """
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _begin(*initializer: str) -> None:
    follow_the_parent()
    with loading_modules():
        begins = [pkgutil.resolve_name(name) for name in initializer]
    for begin in begins:
        begin()
