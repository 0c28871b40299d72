"""Attention by kernels in Triton's interpreter on a CPU, against attention segment by segment.

A program of its own, since the interpreter must be asked for before Triton is imported: ``TRITON_INTERPRET=1 python -m
tests.support.interpreted``. It knows no bfloat16, so this is fp32.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from hebrew_asr.passes.attention import Segments, segment_attention

_patch_tensor = interpreter._patch_lang_tensor


def _with_index(tensor: Any, scope: Any) -> None:
    """Triton 3.6 gives ``int`` an array of one element, which NumPy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _with_index


def check(lengths: list[int], heads: tuple[int, int], width: int, opening: int, causal: bool) -> None:
    """AssertionError, if outputs or gradients differ."""
    from hebrew_asr.passes.segment_kernels import Sight, backward, forward

    rows, bounds = sum(lengths), torch.tensor([0, *lengths]).cumsum(0).int()
    segments = Segments.of(bounds, rows, opening)
    parts = [torch.randn(rows, count, width, requires_grad=True) for count in (heads[0], heads[1], heads[1])]
    expected = segment_attention(*parts, segments, causal=causal, scale=0.3)
    gradient = torch.randn_like(parts[0])
    sight = Sight(segments.first_T, segments.end_T, opening, causal, 0.3)
    query, key, value = (part.detach() for part in parts)
    found, logsum = forward(query, key, value, sight)
    gradients = backward(gradient, query, key, value, found, logsum, sight)
    wanted: tuple[Tensor, ...] = torch.autograd.grad(expected, parts, gradient)
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def main() -> None:
    """Sizes around those of a tile, and others as they come."""
    torch.manual_seed(0)
    check([9, 64, 1, 65, 127], (4, 2), 16, opening=9, causal=True)
    check([64, 64, 3], (2, 2), 24, opening=0, causal=False)
    check([17, 20], (3, 1), 8, opening=17, causal=True)
    draw = random.Random(0)
    for opening in (0, 1, 16, 40):
        lengths = [opening] * (opening > 0) + [draw.randint(1, 90) for _ in range(draw.randint(1, 3))]
        check(lengths, draw.choice([(2, 1), (2, 2)]), draw.choice([8, 16]), opening, causal=draw.random() < 0.7)


if __name__ == "__main__":
    main()
