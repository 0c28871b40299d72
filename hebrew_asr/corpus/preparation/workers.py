"""The processes that convert rows, and what is done where one of them ends."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ParamSpec, TypeVar

from hebrew_asr.cores import keep_freed_memory, usable_cores
from hebrew_asr.corpus.preparation.crashes import crash_of, forget_notes, set_aside
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.pools import Pool

P = ParamSpec("P")
Result = TypeVar("Result")


class Workers:
    """Up to so many processes, each started when there is work for it; they stay until :meth:`end`."""

    def __init__(self, processes: int | None, work: Path):
        """By default one per usable core. ``work``: where they note the rows that they are at."""
        self._processes, self._work = processes or len(usable_cores()), work
        self._pool: Pool | None = None
        self._seen: dict[int, BaseProcess] = {}
        """Kept to ask them how they ended: the pool itself forgets them."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def has_begun(self) -> bool:
        """Whether any process was started that :meth:`set_aside` has not asked yet."""
        return bool(self._seen)

    def submit(self, task: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Have a task done by a process of the pool, which is started anew if it has ended.

        Raises:
            BrokenProcessPool: a worker has ended, and no one has called :meth:`set_aside` yet.
        """
        if self._pool is None:
            forget_notes(self._work)
            self._pool = Pool(self._processes, start_worker)
        future = self._pool.submit(task, *args, **kwargs)
        self._seen |= {process.pid: process for process in multiprocessing.active_children() if process.pid}
        return future

    def end(self) -> None:
        """Let the processes end what they are at, and drop what none has begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def set_aside(self) -> None:
        """After a BrokenProcessPool: set the rows aside that workers crashed at, so that the rest can go on.

        Raises:
            EnvironmentProblem: there are none, so a worker ended for another reason.
        """
        # First: while the pool's thread waits for a worker too, only one of both is told how it ended.
        Workers.end(self)
        crashes = [crash for process in self._seen.values() if (crash := crash_of(process, self._work))]
        for row, cause in crashes:
            set_aside(row, cause, self._work)
        codes = sorted({process.exitcode for process in self._seen.values() if process.exitcode})
        self._seen = {}
        if not crashes:
            raise EnvironmentProblem(
                f"a worker process was killed, perhaps for want of memory (exit codes {codes}). What is done is kept: "
                "run the same command again to continue, with fewer --processes if need be"
            )


def start_worker() -> None:
    """What a worker does first that decodes clip after clip."""
    keep_freed_memory()
