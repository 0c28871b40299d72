"""Loader processes: started, watched by the thread that waits for their steps, and ended."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from hebrew_asr.cores import keep_freed_memory
from hebrew_asr.data.loader import StepBatch, StepDataset
from hebrew_asr.errors import STOP_SIGNALS, EnvironmentProblem
from hebrew_asr.launching.processes import end_with_the_parent, socket_folder

_ENDS_S = 5.0
"""Until a process that is killed has closed its files, of which the trainer notices the first; then it ends."""


def load_steps(dataset: StepDataset, first: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[StepBatch]:
    """Steps ``first`` to ``stop`` in order, read ahead by ``workers`` processes, which start at once.

    Call it in the main thread.

    Raises, when it comes to such a step:
        DataError: no clip of the next step can be decoded.
        EnvironmentProblem: the server on which its clips lie does not answer, a process was killed, or there is no
            memory to share, or the path of the temporary folder is too long.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_settle_worker,
        multiprocessing_context="fork" if workers else None,
    )
    if workers:
        _try_semaphores(workers)
        socket_folder()  # they inherit it, and this process removes it: they are killed in the end
    others = multiprocessing.active_children()
    loaded = iter(loader)
    # The DataLoader's own handler raises wherever the main thread is: in the midst of an optimizer step.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_unless_cut_off
    return _raising(loaded, [child for child in multiprocessing.active_children() if child not in others])


def _try_semaphores(workers: int) -> None:
    """Make as many as the DataLoader will, and let go of them: half built, it would end in a traceback of its own."""
    context = multiprocessing.get_context("fork")
    try:
        _ = context.Event(), [context.Queue() for _ in range(workers + 1)]
    except OSError as error:
        raise EnvironmentProblem(
            f"loader processes cannot be started ({error.strerror}): they need room in /dev/shm (docker run "
            "--shm-size=8g, or --ipc=host) and open files (ulimit -n); or load without them (--set data.workers=0)"
        ) from error


def _raising(loaded: Iterator[StepBatch], processes: list[BaseProcess]) -> Iterator[StepBatch]:
    while True:
        try:
            batch = next(loaded, None)
        except Exception as error:
            closed = wait([one.sentinel for one in processes], _ENDS_S) if processes else []
            killed = next((one for one in processes if one.sentinel in closed), None)
            if killed is None:
                raise
            killed.join()  # `is_alive` may still be true
            raise EnvironmentProblem(
                f"a loader process ended before its work was done (pid {killed.pid}, exit code {killed.exitcode}): "
                "killed, perhaps for want of memory; dmesg may say so, and fewer take less (--set data.workers=2)"
            ) from error
        if batch is None:
            return
        if batch.error is not None:
            raise batch.error
        yield batch


def _settle_worker(_: int) -> None:
    """One thread each. Workers ignore signals that ask for a stop: the trainer needs their data until its step is done.

    They end with the trainer however it ends: a worker that is stuck in a read could not notice by itself.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_the_parent()


def _report_unless_cut_off(error: threading.ExceptHookArgs) -> None:
    """The DataLoader's thread for pinned memory may be receiving from a worker that is killed: no news to anybody."""
    cut_off = issubclass(error.exc_type, (ConnectionError, EOFError, FileNotFoundError))
    if not (cut_off and error.thread is not None and "_pin_memory_loop" in error.thread.name):
        threading.__excepthook__(error)
