"""Steps made ready before they are wanted: copied to the device and turned into features beside the running step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.clip_audio import Unreadable
from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.data.loader import LoadedStep, end_workers
from hebrew_asr.engine.engine import MicroBatch

_CHECK_S = 0.5
_JOIN_S = 3.0


@dataclass(frozen=True)
class FedStep:
    """One rank's optimizer step, on its device."""

    step: int
    micro_batches: list[MicroBatch]
    """``inputs`` are the packed batch and its features."""
    wait_s: float
    """How long the training thread waited for it."""
    skipped: tuple[Unreadable, ...] = ()
    """Clips of this rank's share that are not in it."""


def feed(
    steps: Iterator[LoadedStep], mel: LogMel, device: torch.device, give_up: Callable[[], bool] = lambda: False
) -> Generator[FedStep]:
    """Yield ``steps`` on ``device``, in order; on CUDA the next ones are prepared meanwhile, on a stream of their own.

    Steps are loaded in a thread, so that a wait for data that never comes (a file system that hangs) can be left.

    Args:
        steps: from :func:`hebrew_asr.data.loader.load_steps`.
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
            item = source.wait(give_up)
            if item is None:
                return
            loaded, micro_batches = item
            yield FedStep(loaded.step, micro_batches, time.monotonic() - started, loaded.skipped)
    finally:
        source.close()


class _OnDemand:
    """A thread that loads a step when it is asked for one: a CPU that trains has no time to prepare the next."""

    def __init__(self, steps: Iterator[LoadedStep], mel: LogMel, device: torch.device):
        self._steps, self._mel, self._device = steps, mel, device
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._wanted = threading.Semaphore(0)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def wait(self, give_up: Callable[[], bool]) -> tuple[LoadedStep, list[MicroBatch]] | None:
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
        end_workers()
        self._thread.join(_JOIN_S)  # one that is stuck in a read goes with the process

    def _run(self) -> None:
        try:
            with self._on_device():
                for loaded in self._asked_for():
                    if not self._put(self._prepared(loaded)):
                        return
        except BaseException as error:  # raised again in the training thread
            self._put(error)
        else:
            self._put(None)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _asked_for(self) -> Iterator[LoadedStep]:
        while self._wanted.acquire() and not self._closed.is_set():
            loaded = next(self._steps, None)
            if loaded is None:
                return
            yield loaded

    def _prepared(self, loaded: LoadedStep) -> Any:
        return loaded

    def _received(self, item: Any) -> tuple[LoadedStep, list[MicroBatch]]:
        return item, _to_device(item, self._mel, self._device)

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

    All that can be done in its thread is: each call into torch from the training thread offers Python's lock to this
    one, and can wait for it a while.
    """

    def __init__(self, steps: Iterator[LoadedStep], mel: LogMel, device: torch.device):
        self._training_stream = torch.cuda.current_stream(device)
        super().__init__(steps, mel, device)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _asked_for(self) -> Iterator[LoadedStep]:
        return self._steps

    def _prepared(self, loaded: LoadedStep) -> Any:
        micro_batches = _to_device(loaded, self._mel, self._device)
        for micro in micro_batches:
            packed, mel_CBF = micro.inputs
            # The allocator must not reuse this memory for the side stream while the step still reads it.
            packed.record_stream(self._training_stream)
            mel_CBF.record_stream(self._training_stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return loaded, micro_batches, event

    def _received(self, item: Any) -> tuple[LoadedStep, list[MicroBatch]]:
        loaded, micro_batches, event = item
        self._training_stream.wait_event(event)
        return loaded, micro_batches


def _to_device(loaded: LoadedStep, mel: LogMel, device: torch.device) -> list[MicroBatch]:
    micro_batches = []
    for micro in loaded.micro_batches:
        packed: PackedBatch = micro.packed.to(device, non_blocking=True)
        micro_batches.append(MicroBatch((packed, mel(packed)), micro.num_labels))
    return micro_batches
