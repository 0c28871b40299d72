"""The same units, converted by the workers of a Dask cluster (https://distributed.dask.org): several machines at once.

What comes out is what the pool of one machine makes. A worker that dies has its unit done again by another. What ends
one worker after the other is done on this machine, whose pool knows how a process ended. Where the scheduler is lost,
the units that are not done begin anew once it is back.
"""

from __future__ import annotations

import gc
import socket
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from functools import cache, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from hebrew_asr.cores import keep_freed_memory
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.errors import EnvironmentProblem, UsageError, first_line

P = ParamSpec("P")
Result = TypeVar("Result")

PATIENCE_S = 600.0
"""How long a scheduler that does not answer, and a cluster without workers, are waited for."""
_ASK_S, _PAUSE_S = 5.0, 0.5


class Cluster(Workers):
    """Workers elsewhere, by the address of their scheduler; one process here for what ends them."""

    def __init__(self, address: str, work: Path):
        """Nothing is connected yet. ``work``: in the folder that is prepared, which all workers must see."""
        super().__init__(1, work)
        self._address, self._client = address, None
        try:
            import distributed
        except ImportError as error:
            raise UsageError(
                "--workers-on needs dask.distributed, here and on the workers: pip install 'hebrew-asr[cluster]'"
            ) from error
        self._dask: Any = distributed

    def submit(self, task: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Have a task done by a worker of the cluster, or here where it ends them.

        Raises:
            EnvironmentProblem: there is no cluster that can be used.
        """
        if self._client is None:
            self._client = self._connected()
        told: Future[Result] = Future()
        there = self._client.submit(on_worker, task, *args, **kwargs, key=f"{task.__name__}-{uuid.uuid4().hex}")
        here = partial(super().submit, task, *args, **kwargs)
        there.add_done_callback(lambda done: self._settle(told, done, here))
        return told

    def _settle(self, told: Future[Result], done: Any, here: Callable[[], Future[Result]]) -> None:
        """Pass on how a task ended on the cluster; runs in a thread of the client's."""
        try:
            told.set_result(done.result())
        except self._dask.KilledWorker as error:
            print(f"prepare: {first_line(error)}; doing it here", file=sys.stderr, flush=True)
            try:
                here().add_done_callback(lambda own: self._settle(told, own, here))
            except Exception as failure:
                told.set_exception(failure)
        except (self._dask.client.FutureCancelledError, self._dask.CancelledError, OSError, TimeoutError) as error:
            is_lost = getattr(done, "status", "error") != "error"
            told.set_exception(BrokenExecutor(str(error)) if is_lost else error)
        except Exception as error:
            told.set_exception(error)

    def end(self) -> None:
        """Drop what no worker has begun, and leave; the cluster stays."""
        super().end()
        if self._client is not None:
            self._client.close(timeout=_ASK_S)
            self._client = None

    def set_aside(self) -> None:
        """After a BrokenExecutor: set aside what ended a process here; where the scheduler was lost, only leave it."""
        if self.has_begun:
            super().set_aside()
        else:
            told = f"prepare: the scheduler at {self._address} was lost; what is not done begins anew when it is back"
            print(told, file=sys.stderr, flush=True)
        self.end()

    def _connected(self) -> Any:
        """A client, when there are workers that can be used.

        Raises:
            EnvironmentProblem: nobody answers, or the workers are not fit for it.
        """
        deadline, told = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                place = urlsplit(self._address)
                # A client that finds nobody prints a traceback when it is collected, so it is asked for first.
                socket.create_connection((place.hostname, place.port), _ASK_S).close()
                client = self._dask.Client(self._address, timeout=_ASK_S, set_as_default=False)
                try:
                    client.wait_for_workers(1, timeout=_ASK_S)
                    self._refuse_unfit(client)
                    return client
                except BaseException:
                    client.close(timeout=_ASK_S)
                    raise
            except (OSError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise EnvironmentProblem(
                        f"no scheduler with workers at {self._address}: {first_line(error)}. Start `dask scheduler` "
                        "and `dask worker --nthreads 1`. What is done is kept: run the same command again to continue"
                    ) from error
            if not told:
                print(f"prepare: waiting for a scheduler with workers at {self._address}", file=sys.stderr, flush=True)
                told = True
            time.sleep(_PAUSE_S)

    def _refuse_unfit(self, client: Any) -> None:
        """Workers that see another disk, or have other code, would make another set; threads would share a decoder."""
        mark = self._work / f"seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            found = client.run(fitness, str(mark))
        finally:
            mark.unlink()
        threads = {address: worker["nthreads"] for address, worker in client.scheduler_info(-1)["workers"].items()}
        _, own = fitness(str(self._work))
        for address, (sees, versions) in found.items():
            if not sees:
                raise EnvironmentProblem(
                    f"worker {address} does not see {self._work.parent}: --out must lie on a file system that all "
                    "workers share, under the same path"
                )
            if versions != own:
                names = [name for name in own if versions.get(name) != own[name]]
                differ = ", ".join(f"{name} {versions.get(name)}, here {own[name]}" for name in names)
                raise EnvironmentProblem(f"worker {address} would make other bytes than this machine: {differ}")
            if threads.get(address, 1) != 1:
                raise EnvironmentProblem(
                    f"worker {address} has {threads[address]} threads, and decoders need a process each: start "
                    "`dask worker --nthreads 1 --nworkers N`"
                )


def fitness(path: str) -> tuple[bool, dict[str, str]]:
    """Whether a worker sees a file, and the versions of what decides its bytes."""
    from hebrew_asr.corpus.preparation.output import versions

    return Path(path).exists(), versions()


def on_worker(task: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Result:
    """Do a task in a process that a nanny has started."""
    _settle_in()
    return task(*args, **kwargs)


@cache
def _settle_in() -> None:
    """What Dask and its nannies set serves tasks unlike these."""
    import distributed

    gc.freeze()  # as in the pool's processes
    keep_freed_memory()
    worker: Any = distributed.get_worker()
    for name in {"profile", "tick"} & {*worker.periodic_callbacks}:  # 100 and 50 times a second: 2 % of a core and more
        worker.loop.add_callback(worker.periodic_callbacks[name].stop)
