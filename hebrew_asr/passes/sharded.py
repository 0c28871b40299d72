"""Weights of which every rank holds a share: whole only while parts of the pass need them, as ZeRO-3 has it.

DeepSpeed gathers them from hooks on modules, which take the host some two milliseconds a layer, more than the layer
itself. A pass here is a row of parts (``packed.py``), so the order in which weights are needed is known. Those of a
part come by one all-gather, which is under way while the part before is at work; after it they are let go of, and
backward fetches them again. From the second pass on small parts that follow each other share one gathering, and as many
weights as are allowed stay from forward to backward: those that backward comes to first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

_ALIGNED = 128
"""Elements between which weights begin in memory that they share: kernels read several at once, from even places only.
"""


@dataclass(eq=False)
class _Unit:
    """Weights that are gathered together, of one part or of several that follow each other."""

    index: int
    """Among the units, in the order of a forward pass."""
    weights: list[Tensor]
    shares: list[Tensor]
    """(n,) of each, this rank's: all ranks' end to end are the weight, and what pads it."""
    stand_ins: list[Tensor]
    """For each, while it is not whole."""
    stays: bool = False
    """Whether it stays whole from forward to backward."""
    memory: Tensor | None = None
    """(elements,), where several ranks share the weights: the same tensor in all passes, without memory while the unit
    is not whole. An eager layer keeps views of its weights for backward, which hold other memory until then."""
    wholes: list[Tensor] = field(default_factory=list)
    """The weights in ``memory``, in their shapes."""
    rows: list[Tensor] = field(default_factory=list)
    """(n,) of each there, by the rank that sends it."""

    @property
    def elements(self) -> int:
        """Of the whole weights."""
        return sum(one.numel() for one in self.stand_ins)

    def fill(self, received: Tensor, num_ranks: int) -> None:
        """Make the weights whole of what all ranks have sent, end to end."""
        sizes = [len(share) for share in self.shares]
        if self.memory is None:
            *starts, length = [0, *accumulate(-(-num_ranks * size // _ALIGNED) * _ALIGNED for size in sizes)]
            self.memory = memory = received.new_empty(length)
            flats = [memory.narrow(0, start, num_ranks * size) for start, size in zip(starts, sizes, strict=True)]
            padded = [flat.view(num_ranks, -1) for flat in flats]
            self.rows = [each[rank] for rank in range(num_ranks) for each in padded]
            self.wholes = _cut(flats, self.stand_ins)
        self.memory.untyped_storage().resize_(self.memory.nbytes)
        # ``split_with_sizes_copy`` would send addresses from the host, which a recording cannot repeat.
        torch._foreach_copy_(self.rows, received.split(sizes * num_ranks))


@dataclass(eq=False)
class _Part:
    """A part, as the passes so far have shown it."""

    unit: _Unit
    is_first: bool = True
    """Among the unit's parts, in forward."""
    is_last: bool = True
    comes_back: bool = False
    """Whether backward needs the weights."""


class ShardedWeights:
    """A model's weights, for as long as they lie in these shares."""

    def __init__(
        self,
        shares: Mapping[Tensor, Tensor],
        shapes: Mapping[Tensor, torch.Size],
        num_ranks: int,
        most_together: int,
        most_kept: int,
        all_gather: Callable[[Tensor, Tensor], Any],
        mark: Callable[[Tensor, bool], None],
    ):
        """Puts a stand-in without memory in place of every weight: of its shape, and NaN to whoever reads it.

        Args:
            shares: (n,) of every weight, this rank's.
            shapes: of the whole weights.
            num_ranks: among which they are shared.
            most_together: elements of the weights of several parts that may be gathered together.
            most_kept: elements of weights that may stay whole from forward to backward; the last part's do anyhow.
            all_gather: begins to receive (ranks × n,), given first, of which every rank sends (n,); returns the work,
                whose ``wait`` lets the current stream wait for it.
            mark: called for a weight with whether it is whole now.
        """
        self._shares, self._num_ranks, self._all_gather, self._mark = shares, num_ranks, all_gather, mark
        self._most_together, self._most_kept = most_together, most_kept
        nothing = {share.dtype: share.new_full((1,), torch.nan) for share in shares.values()}
        self._stand_ins = {weight: nothing[share.dtype].expand(shapes[weight]) for weight, share in shares.items()}
        self._parts: dict[tuple[int, ...], _Part] = {}
        self._units: list[_Unit] = []
        self._are_grouped = False
        self.repeats = False
        """Whether a pass has gone through that all others repeat, gathering by gathering: then one can be recorded."""
        self._begun: dict[_Unit, Callable[[], None]] = {}
        self._whole: set[_Unit] = set()
        self._to_come: list[_Unit] = []
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what a pass that came to nothing has left, and put stand-ins where others have put something else."""
        self._forget()
        for weight, stand_in in self._stand_ins.items():
            if weight.data_ptr() != stand_in.data_ptr():
                weight.data = stand_in
        if not self._are_grouped and any(part.comes_back for part in self._parts.values()):
            self._group()

    def drop(self) -> None:
        """Let go of all whole weights: of those too that train lowest, behind which backward has nothing to do."""
        for unit in [*self._whole]:
            self._leave(unit)

    @contextmanager
    def held_by(self, leaves: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Within this, ``leaves`` are in the place of the weights, their keys; after it nothing is whole."""
        self._replace(leaves)
        try:
            yield
        finally:
            self._forget()
            self._replace({leaf: weight for weight, leaf in leaves.items()})

    def _forget(self) -> None:
        self.drop()
        self._begun.clear()
        self._to_come.clear()

    def _replace(self, others: Mapping[Tensor, Tensor]) -> None:
        for unit in self._units:
            unit.weights = [others[weight] for weight in unit.weights]

    def give_back(self) -> None:
        """Nothing stands in for the weights any more."""
        self.drop()
        for weight, share in self._shares.items():
            weight.data = share.new_empty(0)

    def run(self, run: Callable[..., Tensor], part: Callable[..., Tensor], *inputs: Any, rereads: bool) -> Tensor:
        """``run(part, *inputs)``, with the weights of the modules among ``inputs``.

        ``rereads``: whether its backward reads them.
        """
        known = self._part_of([value for value in inputs if isinstance(value, nn.Module)])
        unit = known.unit
        self._enter(unit, self._units[unit.index + 1] if unit.index + 1 < len(self._units) else None)
        if known.is_first:
            leave = partial(self._leave, unit)
            inputs = tuple(
                _InBackward.apply(value, leave) if isinstance(value, Tensor) and value.requires_grad else value
                for value in inputs
            )
        out = run(part, *inputs)
        known.comes_back = rereads and out.requires_grad
        if not known.is_last:
            return out
        if not (unit.stays and out.requires_grad):
            self._leave(unit)
        if not known.comes_back:
            return out
        self._to_come.append(unit)
        result: Any = _InBackward.apply(out, self._come_back)
        return result

    def _part_of(self, modules: list[nn.Module]) -> _Part:
        key = tuple(map(id, modules))
        if key not in self._parts:
            self._parts[key] = _Part(self._add_unit([weight for module in modules for weight in module.parameters()]))
        return self._parts[key]

    def _add_unit(self, weights: list[Tensor]) -> _Unit:
        shares, stand_ins = [self._shares[one] for one in weights], [self._stand_ins[one] for one in weights]
        self._units.append(_Unit(len(self._units), weights, shares, stand_ins))
        return self._units[-1]

    def _group(self) -> None:
        """Put parts together that backward needs alike, and choose what stays: on all ranks the same."""
        rows: list[list[_Part]] = []
        elements = 0
        for part in self._parts.values():
            own = part.unit.elements
            if rows and rows[-1][0].comes_back == part.comes_back and elements + own <= self._most_together:
                rows[-1].append(part)
                elements += own
            else:
                rows.append([part])
                elements = own
        self._units, self._are_grouped = [], True
        for row in rows:
            unit = self._add_unit([weight for part in row for weight in part.unit.weights])
            for part in row:
                part.unit, part.is_first, part.is_last = unit, part is row[0], part is row[-1]
        needed = [row[0].unit for row in reversed(rows) if row[0].comes_back]
        for unit, in_all in zip(needed, accumulate(unit.elements for unit in needed), strict=True):
            unit.stays = unit is needed[0] or in_all <= self._most_kept

    def _come_back(self) -> None:
        """Backward has come to the last unit to which it has not."""
        unit = self._to_come.pop()
        self._enter(unit, self._to_come[-1] if self._to_come else None)
        self.repeats = self._are_grouped and (self.repeats or not self._to_come)

    def _enter(self, unit: _Unit, following: _Unit | None) -> None:
        """Make a unit's weights whole, and begin with those of the next one."""
        to_begin = [one for one in (unit, following) if one is not None and one not in self._whole]
        for one in to_begin:
            if one not in self._begun:
                self._begun[one] = self._begin(one)
        if unit in to_begin:
            self._whole.add(unit)
            self._begun.pop(unit)()
            for weight, whole in zip(unit.weights, unit.wholes, strict=True):
                weight.data = whole
                self._mark(weight, True)

    def _leave(self, unit: _Unit) -> None:
        self._whole.discard(unit)
        if unit.memory is not None:
            unit.memory.untyped_storage().resize_(0)
        for weight, stand_in in zip(unit.weights, unit.stand_ins, strict=True):
            weight.data = stand_in
            self._mark(weight, False)

    def _begin(self, unit: _Unit) -> Callable[[], None]:
        """Send this rank's shares, and receive all; returns what makes the weights whole, once they are there."""
        num_ranks = self._num_ranks
        if num_ranks == 1:
            unit.wholes = _cut(unit.shares, unit.stand_ins)
            return lambda: None
        sent = torch.cat(unit.shares)
        received = sent.new_empty(num_ranks * len(sent))
        work = self._all_gather(received, sent)

        def end() -> None:
            work.wait()
            unit.fill(received, num_ranks)

        return end


def _cut(padded: list[Tensor], forms: list[Tensor]) -> list[Tensor]:
    return [flat[: form.numel()].view(form.shape) for flat, form in zip(padded, forms, strict=True)]


class _InBackward(torch.autograd.Function):
    """A tensor as it is; when backward comes to it, ``act`` is called."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, act: Callable[[], None]) -> Tensor:  # type: ignore[override]
        ctx.act = act
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.act()
        return gradient, None
