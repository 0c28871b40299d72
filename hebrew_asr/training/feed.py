"""Steps made ready before they are wanted: copied to the device and turned into features beside the running step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.collate import PackedBatch
from hebrew_asr.data.loader import LoadedStep
from hebrew_asr.engine.engine import MicroBatch

_CHECK_S = 0.5


@dataclass(frozen=True)
class FedStep:
    """One rank's optimizer step, on its device."""

    step: int
    micro_batches: list[MicroBatch]
    """``inputs`` are the packed batch and its features."""
    wait_s: float
    """How long the training thread waited for it."""
    skipped: tuple[str, ...] = ()
    """Why clips of this rank's share are not in it."""


def feed(steps: Iterator[LoadedStep], mel: LogMel, device: torch.device) -> Iterator[FedStep]:
    """Yield ``steps`` on ``device``, in order; on CUDA the next ones are prepared meanwhile, on a stream of their own.

    Raises:
        Whatever ``steps`` raises, at the step it belongs to.
    """
    return _feed_ahead(steps, mel, device) if device.type == "cuda" else _feed_in_turn(steps, mel, device)


def _feed_in_turn(steps: Iterator[LoadedStep], mel: LogMel, device: torch.device) -> Iterator[FedStep]:
    while True:
        started = time.monotonic()
        loaded = next(steps, None)
        wait_s = time.monotonic() - started
        if loaded is None:
            return
        yield FedStep(loaded.step, _to_device(loaded, mel, device), wait_s, loaded.skipped)


def _feed_ahead(steps: Iterator[LoadedStep], mel: LogMel, device: torch.device) -> Iterator[FedStep]:
    ahead = _Ahead(steps, mel, device)
    try:
        while True:
            started = time.monotonic()
            item = ahead.ready.get()
            wait_s = time.monotonic() - started
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            loaded, micro_batches, event = item
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for micro in micro_batches:
                packed, mel_CBF = micro.inputs
                # The allocator must not reuse this memory for the side stream while the step still reads it.
                packed.record_stream(current)
                mel_CBF.record_stream(current)
            yield FedStep(loaded.step, micro_batches, wait_s, loaded.skipped)
    finally:
        ahead.close()


class _Ahead:
    """A thread that prepares steps on its own CUDA stream, at most two ahead of the one in training."""

    def __init__(self, steps: Iterator[LoadedStep], mel: LogMel, device: torch.device):
        self.ready: queue.Queue = queue.Queue(maxsize=1)
        self._steps, self._mel, self._device = steps, mel, device
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end; the step it is preparing is thrown away."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            torch.cuda.set_device(self._device)
            stream = torch.cuda.Stream(self._device)
            with torch.cuda.stream(stream):
                for loaded in self._steps:
                    micro_batches = _to_device(loaded, self._mel, self._device)
                    event = torch.cuda.Event()
                    event.record(stream)
                    if not self._put((loaded, micro_batches, event)):
                        return
        except BaseException as error:  # raised again in the training thread
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self.ready.put(item, timeout=_CHECK_S)
                return True
            except queue.Full:
                continue
        return False


def _to_device(loaded: LoadedStep, mel: LogMel, device: torch.device) -> list[MicroBatch]:
    micro_batches = []
    for micro in loaded.micro_batches:
        packed: PackedBatch = micro.packed.to(device, non_blocking=True)
        micro_batches.append(MicroBatch((packed, mel(packed)), micro.num_labels))
    return micro_batches
