"""Decode on several devices at once, each in a process of its own: one would wait for another's turn at the host."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from hebrew_asr.errors import EnvironmentProblem, HebrewASRError
from hebrew_asr.evaluation.hearing import Utterance, heard
from hebrew_asr.inference.transcriber import Transcriber
from hebrew_asr.pools import follow_the_parent, start_tracker
from hebrew_asr.text.scoring import Transcript


def heard_on(
    devices: Sequence[str],
    load: Callable[[str], Transcriber],
    opened: Callable[[], Iterable[Utterance]],
    batch: int,
    on_done: Callable[[float], None] = lambda _seconds: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Iterator[Transcript]:
    """:func:`heard` on several devices: a process for each decodes an equal share.

    Args:
        devices: such as ``cuda:0``; no process is started for a single one.
        load: gives the transcriber on a device; it can be pickled.
        opened: gives all utterances, the same each time; likewise.
        batch: see :func:`heard`, as for the others.

    Raises:
        HebrewASRError: what ``load`` or ``opened`` raises.
        EnvironmentProblem: a process was killed, or ended itself.
        RuntimeError: another error of a process, with its traceback.
    """
    if len(devices) == 1:
        yield from heard(load(devices[0]), opened(), batch, on_done, tell)
        return
    context = multiprocessing.get_context("spawn")
    start_tracker()
    said: Any = context.Queue()
    shares = [(said, load, opened, batch, device, slice(n, None, len(devices))) for n, device in enumerate(devices)]
    processes = [context.Process(target=_hear_share, args=share, daemon=True) for share in shares]
    try:
        for process in processes:
            process.start()
        for kind, value in _messages(said, processes, devices):
            if kind == "heard":
                yield value
            else:
                (on_done if kind == "done" else tell)(value)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _messages(said: Any, processes: Sequence[Any], devices: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What processes say, until all have ended."""
    going = len(processes)
    while going:
        try:
            kind, value = said.get(timeout=1)
        except queue.Empty:
            for process, device in zip(processes, devices, strict=True):
                if process.exitcode:
                    killed = process.exitcode == -signal.SIGKILL
                    how = "was killed, perhaps for want of memory" if killed else f"ended with code {process.exitcode}"
                    raise EnvironmentProblem(f"what decoded on {device} {how}") from None
            continue
        if kind == "ended":
            going -= 1
            if value is not None:
                raise value
        else:
            yield kind, value


def _hear_share(said: Any, load: Any, opened: Any, batch: int, device: str, share: slice) -> None:
    follow_the_parent()
    for number in (signal.SIGINT, signal.SIGHUP):  # of the terminal; the parent ends this process
        signal.signal(number, signal.SIG_IGN)
    failure: Exception | None = None
    try:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        own = islice(opened(), share.start, None, share.step)
        done, tell = (lambda seconds: said.put(("done", seconds))), (lambda text: said.put(("tell", text)))
        for transcript in heard(load(device), own, batch, done, tell):
            said.put(("heard", transcript))
    except HebrewASRError as error:
        failure = error
    except Exception:  # of any class, and not each can travel
        failure = RuntimeError(f"decoding on {device} failed\n{traceback.format_exc()}")
    said.put(("ended", failure))
