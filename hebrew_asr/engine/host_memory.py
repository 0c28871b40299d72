"""The copy of the optimizer state that a checkpoint is written from, in memory that is used for every checkpoint.

Training waits for that copy. Into fresh memory, whose pages are mapped one by one as they are first written, it took
8.5 s for 12 GB on one H100. So the memory is kept, and beside a CUDA device it is page-locked: the device then writes
at the full rate of the bus: 0.2 s. Locking is slow as well, but goes on in a thread while a phase begins.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from hebrew_asr.engine.optimizer_state import PartitionState
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.units import GIB


class HostMemory:
    """Room for one copy of a rank's state; each copy replaces the one before it."""

    def __init__(self) -> None:
        """No memory is taken yet."""
        self._buffer = torch.empty(0)
        self._locking: threading.Thread | None = None
        self._unlock: weakref.finalize | None = None

    def reserve(self, states: list[PartitionState]) -> None:
        """Take memory for states of this size, if it is not that size already; returns before it is locked."""
        tensors = [tensor for item in states for tensor in item.tensors.values()]
        size = sum(map(len, tensors))
        if size == len(self._buffer):
            return
        self._wait()
        if self._unlock is not None:
            self._unlock()
        self._buffer = torch.empty(size, dtype=torch.float32)
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if device is not None:  # not where the optimizer is offloaded
            self._locking = threading.Thread(target=self._lock, args=(device,), name="host-memory", daemon=True)
            self._locking.start()

    def copy(self, states: list[PartitionState]) -> list[PartitionState]:
        """A copy that no later step changes. The memory of the one before is overwritten."""
        self.reserve(states)
        self._wait()
        copied, offset = [], 0
        for item in states:
            tensors = {}
            for kind, tensor in item.tensors.items():
                tensors[kind] = self._buffer[offset : offset + len(tensor)].copy_(tensor)
                offset += len(tensor)
            copied.append(PartitionState(item.group, item.fragments, tensors, item.step))
        return copied

    def _lock(self, device: torch.device) -> None:
        # The buffer's own pages, since torch's pinned allocations are rounded up to a power of two.
        torch.cuda.set_device(device)
        address = self._buffer.data_ptr()
        cudart: Any = torch.cuda.cudart()
        status = int(cudart.cudaHostRegister(address, self._buffer.nbytes, 0))
        if status == 0:
            self._unlock = weakref.finalize(self, _unlock, address)
        else:
            note_fallback(
                "host memory could not be page-locked, so training waits longer for each checkpoint's copy",
                f"cudaHostRegister of {self._buffer.nbytes / GIB:.1f} GiB gave error {status}",
            )

    def _wait(self) -> None:
        if self._locking is not None:
            self._locking.join()
            self._locking = None


def _unlock(address: int) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(address)
