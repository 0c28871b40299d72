"""A dataclass of tensors that crosses to another process, into page-locked memory or to a device as one tensor.

Each tensor that crosses alone costs the receiving process a tenth of a millisecond, and a batch has thirty. What it
spends on them, in threads beside the one that trains, that one waits for: they share an interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the one piece of memory."""

    first_byte: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def end_byte(self) -> int:
        """Where the next one may begin."""
        return self.first_byte + -(-self.num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

    def of(self, memory: Tensor) -> Tensor:
        return memory.narrow(0, self.first_byte, self.num_bytes).view(self.dtype).view(self.shape)


class Bundled:
    """Base of a frozen dataclass of tensors, of other values, and of dataclasses and tuples that hold such."""

    _bundle: tuple[Tensor, dict[str, Any]] | None = None
    """(bytes,) uint8, and the fields, with a ``_Place`` for each tensor; None while the tensors lie here and there."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on ``device``, where each tensor has memory of its own.

        Compiled code is made for where in its memory a tensor begins: it would be made anew for batch after batch.
        """
        memory, values = self._bundled()
        there = memory.to(device, non_blocking=non_blocking)
        return type(self)(**_changed(values, _Place, lambda place: place.of(there).clone()))

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        memory, values = self._bundled()
        return _opened(type(self), memory.pin_memory(), values)

    def share_memory(self) -> Self:
        """The same in memory that other processes see. Raises RuntimeError where there is not enough of that."""
        memory, values = self._bundled()
        return _opened(type(self), memory.share_memory_(), values)

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that a CUDA stream other than the one it was made on uses the tensors."""
        _changed(vars(self), Tensor, lambda tensor: tensor.record_stream(stream))

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle."""
        return _opened, (type(self), *self._bundled())

    def _bundled(self) -> tuple[Tensor, dict[str, Any]]:
        if self._bundle is not None:
            return self._bundle
        placed: list[tuple[_Place, Tensor]] = []

        def place(tensor: Tensor) -> _Place:
            placed.append((_Place(placed[-1][0].end_byte if placed else 0, tensor.shape, tensor.dtype), tensor))
            return placed[-1][0]

        values = _changed(vars(self), Tensor, place)
        memory = torch.empty(placed[-1][0].end_byte, dtype=torch.uint8, device=placed[0][1].device)
        for there, tensor in placed:
            there.of(memory).copy_(tensor)
        return memory, values


def _opened(kind: type, memory: Tensor, values: dict[str, Any]) -> Any:
    opened = kind(**_changed(values, _Place, lambda place: place.of(memory)))
    object.__setattr__(opened, "_bundle", (memory, values))  # it is frozen
    return opened


def _changed(held: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``held``, with ``change`` of everything of a kind in its place."""
    if isinstance(held, kind):
        return change(held)
    if isinstance(held, dict):
        return {name: _changed(value, kind, change) for name, value in held.items()}
    if isinstance(held, tuple):
        return tuple(_changed(part, kind, change) for part in held)
    return replace(held, **_changed(vars(held), kind, change)) if is_dataclass(held) else held
