"""Rows of the tied head that train while the others stay: the head and the embedding give gradients to these alone.

Of the 151,936 rows of Qwen3-ASR's head some 3,200 are tokens that occur in training. To make the gradient of every row
and to zero most of it would take longer than to make these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_EVEN = 8
"""Elements of 16 bits in 16 bytes: tensor cores want rows that begin at multiples of these (cuBLAS's guide)."""


class LiveTokens(NamedTuple):
    """Tokens whose rows train, on the head's device. R of them, of V."""

    ids_R: Tensor
    """int64, ascending."""
    places_V: Tensor
    """int64: where a token that is read adds to the gradient, among ``ids_R``. R is nowhere."""

    @staticmethod
    def of(present_V: Tensor, padding_id: int | None, device: torch.device) -> LiveTokens:
        """Those that ``present_V``, (V,) bool in host memory, has; ``padding_id``'s row never trains by being read."""
        ids_R = present_V.nonzero().flatten()
        places_V = torch.where(present_V, present_V.cumsum(0) - 1, len(ids_R))
        if padding_id is not None:
            places_V[padding_id] = len(ids_R)
        return LiveTokens(ids_R.to(device), places_V.to(device))

    def absent_V1(self) -> Tensor:
        """(V, 1) bool: the other tokens."""
        return torch.ones_like(self.places_V, dtype=torch.bool).index_fill_(0, self.ids_R, False)[:, None]

    def logits(self, hidden_LH: Tensor, weight_VH: Tensor) -> Tensor:
        """(L, V), as ``F.linear`` gives them."""
        result: Any = _Head.apply(hidden_LH, weight_VH, self.ids_R)
        return result

    def embedded(self, input_ids_T: Tensor, weight_VH: Tensor) -> Tensor:
        """(T, H), as ``F.embedding`` gives it."""
        result: Any = _Embedding.apply(weight_VH, input_ids_T, *self)
        return result


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_LH: Tensor, weight_VH: Tensor, ids_R: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(hidden_LH, weight_VH, ids_R)
        return F.linear(hidden_LH, weight_VH)

    @staticmethod
    def backward(ctx: Any, gradient_LV: Tensor) -> Any:  # type: ignore[override]
        hidden_LH, weight_VH, ids_R = ctx.saved_tensors
        of_hidden_LH = gradient_LV @ weight_VH if ctx.needs_input_grad[0] else None
        columns_LP = F.pad(gradient_LV.index_select(1, ids_R), (0, -len(ids_R) % _EVEN))
        rows_RH = (columns_LP.T @ hidden_LH)[: len(ids_R)]
        return of_hidden_LH, _among_zeros(rows_RH, ids_R, len(weight_VH)), None


class _Embedding(torch.autograd.Function):
    """Backward reads no weights, which may not be there (``sharded.py``)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weight_VH: Tensor, input_ids_T: Tensor, ids_R: Tensor, places_V: Tensor
    ) -> Tensor:
        ctx.save_for_backward(input_ids_T, ids_R, places_V)
        ctx.num_rows = len(weight_VH)
        return F.embedding(input_ids_T, weight_VH)

    @staticmethod
    def backward(ctx: Any, gradient_TH: Tensor) -> Any:  # type: ignore[override]
        input_ids_T, ids_R, places_V = ctx.saved_tensors
        nothing = gradient_TH.new_zeros((len(ids_R) + 1, gradient_TH.shape[1]), dtype=torch.float32)
        # Eager on CUDA this adds up in one order always, which ``index_add`` does not.
        sums = nothing.index_put_((places_V.index_select(0, input_ids_T),), gradient_TH.float(), accumulate=True)
        rows_RH = sums[: len(ids_R)].to(gradient_TH.dtype)
        return _among_zeros(rows_RH, ids_R, ctx.num_rows), None, None, None


def _among_zeros(rows_RH: Tensor, ids_R: Tensor, num_rows: int) -> Tensor:
    return rows_RH.new_zeros((num_rows, rows_RH.shape[1])).index_copy_(0, ids_R, rows_RH)
