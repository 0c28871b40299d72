"""A dataclass of tensors that crosses to another process, into page-locked memory or to a device as one tensor.

Each tensor that crosses alone costs the receiving process a tenth of a millisecond, and a batch has thirty. What it
spends on them, in threads beside the one that trains, that one waits for: they share an interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
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


@dataclass(frozen=True)
class _Form:
    """A dataclass with a ``_Place`` for each of its tensors."""

    kind: type
    values: dict[str, Any]

    def filled(self, fill: Callable[[_Place], Tensor]) -> Any:
        """The dataclass, with a tensor for each place."""
        return self.kind(**{name: _filled(value, fill) for name, value in self.values.items()})


class Bundled:
    """Base of a frozen dataclass of tensors, of other values, and of dataclasses and tuples that hold such."""

    _bundle: tuple[Tensor, _Form] | None = None
    """(bytes,) uint8, and where in it the tensors lie; None while they lie here and there."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on ``device``, where each tensor has memory of its own.

        Compiled code is made for where in its memory a tensor begins: it would be made anew for batch after batch.
        """
        memory, form = self._bundled()
        there = memory.to(device, non_blocking=non_blocking)
        return form.filled(lambda place: place.of(there).clone())

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        memory, form = self._bundled()
        return _opened(memory.pin_memory(), form)

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that a CUDA stream other than the one it was made on uses the tensors."""
        placed: list[tuple[_Place, Tensor]] = []
        _form_of(self, placed)
        for _, tensor in placed:
            tensor.record_stream(stream)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle."""
        return _opened, self._bundled()

    def _bundled(self) -> tuple[Tensor, _Form]:
        if self._bundle is not None:
            return self._bundle
        placed: list[tuple[_Place, Tensor]] = []
        form = _form_of(self, placed)
        memory = torch.empty(placed[-1][0].end_byte, dtype=torch.uint8, device=placed[0][1].device)
        for place, tensor in placed:
            place.of(memory).copy_(tensor)
        return memory, form


def _opened(memory: Tensor, form: _Form) -> Any:
    opened = form.filled(lambda place: place.of(memory))
    object.__setattr__(opened, "_bundle", (memory, form))  # it is frozen
    return opened


def _form_of(held: Any, placed: list[tuple[_Place, Tensor]]) -> Any:
    if isinstance(held, Tensor):
        place = _Place(placed[-1][0].end_byte if placed else 0, held.shape, held.dtype)
        placed.append((place, held))
        return place
    if isinstance(held, tuple):
        return tuple(_form_of(part, placed) for part in held)
    if is_dataclass(held):
        return _Form(type(held), {field.name: _form_of(getattr(held, field.name), placed) for field in fields(held)})
    return held


def _filled(form: Any, fill: Callable[[_Place], Tensor]) -> Any:
    if isinstance(form, _Place):
        return fill(form)
    if isinstance(form, tuple):
        return tuple(_filled(part, fill) for part in form)
    return form.filled(fill) if isinstance(form, _Form) else form
