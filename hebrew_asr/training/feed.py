"""Brings steps to the device and makes their features, on CUDA while the step before is running."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.loader import MicroBatch, StepBatch
from hebrew_asr.engine.engine import MicroBatchTooLarge
from hebrew_asr.errors import end_children

_CHECK_S = 0.5
_JOIN_S = 3.0


def feed(
    steps: Iterator[StepBatch], mel: LogMel, device: torch.device, give_up: Callable[[], bool] = lambda: False
) -> Generator[StepBatch]:
    """Yield ``steps`` on ``device`` with features, in order. On CUDA two more are prepared ahead, on their own stream.

    Steps are loaded in a thread, so that a wait for data that never comes (a file system that hangs) can be left.

    Args:
        steps: from :func:`hebrew_asr.training.loading.load_steps`.
        mel: on ``device``.
        device: where the steps go.
        give_up: asked before and while a step is waited for; nothing more is yielded once it says so.

    Raises:
        Whatever ``steps`` raises, at the step it belongs to.
    """
    source = (_Ahead if device.type == "cuda" else _OnDemand)(steps, mel, device)
    try:
        while True:
            started = time.monotonic()
            batch = source.wait(give_up)
            if batch is None:
                return
            yield replace(batch, wait_s=time.monotonic() - started)
    finally:
        source.close()


class _OnDemand:
    """A thread that loads a step when it is asked for one: a CPU that trains has no time to prepare the next."""

    def __init__(self, steps: Iterator[StepBatch], mel: LogMel, device: torch.device):
        self._steps, self._mel, self._device = steps, mel, device
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._wanted = threading.Semaphore(0)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def wait(self, give_up: Callable[[], bool]) -> StepBatch | None:
        """The next step; None if there is none left, or ``give_up`` says so before it is ready."""
        self._wanted.release()
        while not give_up():
            try:
                item = self._ready.get(timeout=_CHECK_S)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return None if item is None else self._received(item)
        return None

    def close(self) -> None:
        """Let the thread end; the step it is preparing is thrown away."""
        self._closed.set()
        self._wanted.release()
        end_children()
        self._thread.join(_JOIN_S)  # one that is stuck in a read goes with the process

    def _run(self) -> None:
        try:
            with self._on_device():
                for batch in self._asked_for():
                    if not self._put(self._prepared(batch)):
                        return
        except BaseException as error:  # raised again in the training thread
            self._put(error)
        else:
            self._put(None)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _asked_for(self) -> Iterator[StepBatch]:
        while self._wanted.acquire() and not self._closed.is_set():
            batch = next(self._steps, None)
            if batch is None:
                return
            yield batch

    def _prepared(self, batch: StepBatch) -> Any:
        return batch

    def _received(self, item: Any) -> StepBatch:
        return to_device(item, self._mel, self._device)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_CHECK_S)
                return True
            except queue.Full:
                continue
        return False


class _Ahead(_OnDemand):
    """Prepares steps on a CUDA stream of its own, at most two ahead of the one in training.

    As much as possible happens in its thread: every torch call in the training thread may hand the GIL to this thread
    and wait to get it back.
    """

    def __init__(self, steps: Iterator[StepBatch], mel: LogMel, device: torch.device):
        self._training_stream = torch.cuda.current_stream(device)
        super().__init__(steps, mel, device)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _asked_for(self) -> Iterator[StepBatch]:
        return self._steps

    def _prepared(self, batch: StepBatch) -> Any:
        batch = to_device(batch, self._mel, self._device)
        for micro in batch.micro_batches:
            # The allocator must not reuse this memory for the side stream while the step still reads it.
            micro.packed.record_stream(self._training_stream)
            assert micro.mel_CBF is not None
            micro.mel_CBF.record_stream(self._training_stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return batch, event

    def _received(self, item: Any) -> StepBatch:
        batch, event = item
        self._training_stream.wait_event(event)
        return batch


def features_too_large(reasons: dict[int, str]) -> MicroBatchTooLarge:
    """What a step is that ranks had no memory to make features of; ``reasons`` by rank, on all ranks."""
    return MicroBatchTooLarge("features", [*reasons], True, next(iter(reasons.values())))


def to_device(batch: StepBatch, mel: LogMel, device: torch.device) -> StepBatch:
    packed = [micro.packed.to(device, non_blocking=True) for micro in batch.micro_batches]
    pairs = zip(batch.micro_batches, packed, strict=True)
    return replace(batch, micro_batches=[MicroBatch(there, micro.num_labels, mel(there)) for micro, there in pairs])
