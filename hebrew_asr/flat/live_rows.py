"""A weight of which some rows train and the others stay: the optimizer reduces, moves and sends these rows alone.

Of the 151,936 rows of Qwen3-ASR's head some 3,200 are tokens with Hebrew letters in them. Tokens that do not occur in
training have a gradient of 0 (:mod:`hebrew_asr.passes.absent_tokens`), so AdamW leaves their rows as they are, whether
it passes over them or not. ZeRO cuts the weight into one slice a rank, within rows too. So what is handled are blocks:
runs of elements that divide both rows and slices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST = 0.5
"""With a larger share of the blocks to handle, it is as well to pass over all of them."""


class LiveRows:
    """Blocks of a weight's flat buffer, as many of every rank's slice; in place of the weight, a source of gradients.

    Where a slice has fewer that train, blocks that stay fill it up: their gradient is 0.
    """

    def __init__(self, weight: Tensor, blocks: Tensor, block: int, share: int, rank: int):
        """:meth:`of` finds them.

        Args:
            weight: all of it; it lies at the beginning of the flat buffer.
            blocks: (ranks, blocks a rank), which of the flat buffer.
            block: elements of one.
            share: elements of the flat buffer that a rank owns.
            rank: this one.
        """
        self.length = block * blocks.shape[1]
        """Elements that a rank owns of them."""
        self._weight, self._block = weight, block
        self._all = blocks.flatten().to(weight.device)
        self._own = (blocks[rank] - rank * share // block).to(weight.device)
        self._gradient: Tensor | None = None

    @staticmethod
    def of(weight: Tensor, stays_R1: Tensor, share: int, rank: int, ranks: int) -> LiveRows | None:
        """None if most of the weight would be handled all the same.

        Args:
            weight: (rows, columns).
            stays_R1: (rows, 1) bool: whether a row stays, and its gradient is 0.
            share: elements of the flat buffer that a rank owns.
            rank: this one.
            ranks: how many there are.
        """
        rows, columns = weight.shape
        block = math.gcd(share, columns)
        stays = stays_R1.cpu().expand(rows, columns // block).flatten()
        slices = stays.split(share // block)  # the last may be shorter, or missing: what follows belongs to no weight
        slices += (stays[:0],) * (ranks - len(slices))
        most = max(1, *(len(part) - int(part.sum()) for part in slices))
        if most * ranks > _MOST * len(stays) or any(len(part) < most for part in slices):
            return None
        found = []
        for at, part in enumerate(slices):
            live = part.logical_not().nonzero().flatten()
            others = part.nonzero().flatten()[: most - len(live)]
            found.append(torch.cat([live, others]).sort().values + at * (share // block))
        return LiveRows(weight, torch.stack(found), block, share, rank)

    def numel(self) -> int:
        """Elements of all ranks."""
        return self._block * len(self._all)

    @property
    def grad(self) -> Tensor | None:
        """(ranks × length,): what the weight's gradient holds of them; None if it has none."""
        if self._gradient is None and self._weight.grad is not None:
            self._gradient = _select(self._weight.grad, self._all, self._block)
        return self._gradient

    @grad.setter
    def grad(self, _none: None) -> None:
        self._gradient = self._weight.grad = None

    def own(self, part: Tensor) -> Tensor:
        """(length,): this rank's, out of its slice of a flat buffer, (share,)."""
        return _select(part, self._own, self._block)

    def put_own(self, part: Tensor, values: Tensor) -> None:
        """Back to where :meth:`own` has them from."""
        _put(part, self._own, self._block, values)

    def put_all(self, flat: Tensor, values: Tensor) -> None:
        """Of all ranks, (ranks × length,), into the whole flat buffer, (ranks × share,)."""
        _put(flat, self._all, self._block, values)


Source = Tensor | LiveRows
"""What a gradient comes from: ``numel()`` elements, ``grad`` where a pass made one."""


def _select(flat: Tensor, blocks: Tensor, block: int) -> Tensor:
    return flat.reshape(-1, block).index_select(0, blocks).view(-1)


def _put(flat: Tensor, blocks: Tensor, block: int, values: Tensor) -> None:
    flat.view(-1, block).index_copy_(0, blocks, values.view(-1, block))
