"""Weights of which every rank holds a share: whole only while a part of the pass needs them, as ZeRO-3 has it.

DeepSpeed gathers them from hooks on modules, which take the host some two milliseconds a layer, more than the layer
itself. A pass here is a row of parts (``packed.py``), so the order in which weights are needed is known. Those of a
part come by one all-gather, which is under way while the part before is at work; after it they are let go of, and
backward fetches them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class _Unit:
    """The weights of a part, which are gathered together."""

    index: int
    """Among the units, in the order of a forward pass."""
    weights: list[Tensor]
    shares: list[Tensor]
    """(n,) of each, this rank's: all ranks' end to end are the weight, and what pads it."""
    stand_ins: list[Tensor]
    """For each, while it is not whole."""
    wholes: list[Tensor] = field(default_factory=list)
    """(ranks × n,) of each, where several ranks share it: the same tensors in all passes, without memory while the unit
    is not whole. An eager layer keeps views of its weights for backward, which hold other memory until then."""


class ShardedWeights:
    """A model's weights, for as long as they lie in these shares."""

    def __init__(
        self,
        shares: Mapping[Tensor, Tensor],
        shapes: Mapping[Tensor, torch.Size],
        num_ranks: int,
        all_gather: Callable[[Tensor, Tensor], Any],
        mark: Callable[[Tensor, bool], None],
    ):
        """Puts a stand-in without memory in place of every weight: of its shape, and NaN to whoever reads it.

        Args:
            shares: (n,) of every weight, this rank's.
            shapes: of the whole weights.
            num_ranks: among which they are shared.
            all_gather: begins to receive (ranks × n,), given first, of which every rank sends (n,); returns the work,
                whose ``wait`` lets the current stream wait for it.
            mark: called for a weight with whether it is whole now.
        """
        self._shares, self._num_ranks, self._all_gather, self._mark = shares, num_ranks, all_gather, mark
        nothing = {share.dtype: share.new_full((1,), torch.nan) for share in shares.values()}
        self._stand_ins = {weight: nothing[share.dtype].expand(shapes[weight]) for weight, share in shares.items()}
        self._units: dict[tuple[int, ...], _Unit] = {}
        self._in_order: list[_Unit] = []
        self._begun: dict[_Unit, Callable[[], list[Tensor]]] = {}
        self._whole: set[_Unit] = set()
        self._to_come: list[_Unit] = []
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what a pass that came to nothing has left, and put stand-ins where others have put something else."""
        self.drop()
        self._begun.clear()
        self._to_come.clear()
        for weight, stand_in in self._stand_ins.items():
            if weight.data_ptr() != stand_in.data_ptr():
                weight.data = stand_in

    def drop(self) -> None:
        """Let go of all whole weights: of those too that train lowest, behind which backward has nothing to do."""
        for unit in [*self._whole]:
            self._leave(unit)

    def give_back(self) -> None:
        """Nothing stands in for the weights any more."""
        self.drop()
        for weight, share in self._shares.items():
            weight.data = share.new_empty(0)

    def run(
        self, run: Callable[..., Tensor], part: Callable[..., Tensor], *inputs: Any, stays: bool, rereads: bool
    ) -> Tensor:
        """``run(part, *inputs)``, with the weights of the modules among ``inputs``.

        ``stays``: whether backward begins with this part, so that its weights need not go in between. ``rereads``:
        whether its backward reads them.
        """
        unit = self._unit_of([value for value in inputs if isinstance(value, nn.Module)])
        following = self._in_order[unit.index + 1] if unit.index + 1 < len(self._in_order) else None
        self._enter(unit, following)
        leave = partial(self._leave, unit)
        given = [
            _InBackward.apply(value, leave) if isinstance(value, Tensor) and value.requires_grad else value
            for value in inputs
        ]
        out = run(part, *given)
        if not (stays and out.requires_grad):
            self._leave(unit)
        if not (rereads and out.requires_grad):
            return out
        self._to_come.append(unit)
        result: Any = _InBackward.apply(out, self._come_back)
        return result

    def _unit_of(self, modules: list[nn.Module]) -> _Unit:
        key = tuple(map(id, modules))
        if key not in self._units:
            weights: list[Tensor] = [weight for module in modules for weight in module.parameters()]
            self._units[key] = _Unit(
                len(self._units),
                weights,
                [self._shares[weight] for weight in weights],
                [self._stand_ins[weight] for weight in weights],
            )
            self._in_order.append(self._units[key])
        return self._units[key]

    def _come_back(self) -> None:
        """Backward has come to the last part of which it has not."""
        unit = self._to_come.pop()
        self._enter(unit, self._to_come[-1] if self._to_come else None)

    def _enter(self, unit: _Unit, following: _Unit | None) -> None:
        """Make a unit's weights whole, and begin with those of the next one."""
        if unit not in self._whole and unit not in self._begun:
            self._begun[unit] = self._begin(unit)
        if following is not None and following not in self._begun:
            self._begun[following] = self._begin(following)
        if unit not in self._whole:
            self._whole.add(unit)
            for weight, whole in zip(unit.weights, self._begun.pop(unit)(), strict=True):
                weight.data = whole
                self._mark(weight, True)

    def _leave(self, unit: _Unit) -> None:
        self._whole.discard(unit)
        for whole in unit.wholes:
            whole.untyped_storage().resize_(0)
        for weight, stand_in in zip(unit.weights, unit.stand_ins, strict=True):
            weight.data = stand_in
            self._mark(weight, False)

    def _begin(self, unit: _Unit) -> Callable[[], list[Tensor]]:
        """Send this rank's shares, and receive all; returns what gives the whole weights, once they are there."""
        shares, num_ranks = unit.shares, self._num_ranks
        if num_ranks == 1:
            return lambda: _cut(shares, unit.stand_ins)
        sizes = [len(share) for share in shares]
        sent = torch.cat(shares)
        received = sent.new_empty(num_ranks * len(sent))
        work = self._all_gather(received, sent)

        def end() -> list[Tensor]:
            work.wait()
            if not unit.wholes:
                unit.wholes.extend(received.new_empty(num_ranks, size) for size in sizes)
            for whole in unit.wholes:
                whole.untyped_storage().resize_(whole.nbytes)
            torch.split_with_sizes_copy(received.view(num_ranks, -1), sizes, dim=1, out=unit.wholes)
            return _cut([whole.view(-1) for whole in unit.wholes], unit.stand_ins)

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
