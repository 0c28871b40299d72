"""Attention within the segments of a packed sequence, and to the opening that all of them share."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from hebrew_asr.fallbacks import note_fallback

_LONGEST_OPENING = 64
"""Rows of an opening that kernels have room for in an A10G's shared memory. Qwen3-ASR's has 9."""

_OLDEST = (8, 0)
"""Compute capability of the first cards that Triton supports."""


class Segments(NamedTuple):
    """Where a packed sequence of T rows is cut. With an opening, it is the first segment, which all others see too."""

    bounds_N1: Tensor
    """int32, from 0 to T. No segment is empty."""
    first_T: Tensor
    """int32: of each row, the first of its segment."""
    end_T: Tensor
    """int32: of each row, the one after the last of its segment."""
    opening: int = 0
    """Rows of the first segment, if all others see it."""
    by_kernels: bool = False
    """Whether there are kernels for it."""

    @staticmethod
    def of(bounds_N1: Tensor, num_rows: int, opening: int = 0) -> Segments:
        """Of these bounds, of which the last is ``num_rows``. Nothing waits for the device."""
        rows_T = torch.arange(num_rows, dtype=bounds_N1.dtype, device=bounds_N1.device)
        next_T = torch.bucketize(rows_T, bounds_N1, right=True)
        by_kernels = bounds_N1.is_cuda and opening <= _LONGEST_OPENING and _has_kernels()
        return Segments(bounds_N1, bounds_N1[next_T - 1], bounds_N1[next_T], opening, by_kernels)


@torch.compiler.assume_constant_result
def _has_kernels() -> bool:
    """:func:`_can_build_kernels`, which Dynamo calls instead of tracing it: there is nothing in it for a graph."""
    return _can_build_kernels()


@cache
def _can_build_kernels() -> bool:
    """Triton compiles what launches a kernel with the machine's C compiler and Python's headers."""
    try:
        from triton.runtime import driver

        active: Any = driver.active
        active.get_current_device()
        if torch.version.cuda and torch.cuda.get_device_capability() < _OLDEST:
            raise RuntimeError("Triton supports NVIDIA's cards from compute capability 8.0 on")
    except Exception as error:
        note_fallback("attention runs clip by clip and waits for the device, several times slower", error)
        return False
    return True


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, causal: bool, scale: float
) -> Tensor:
    """Softmax attention in which every row sees its own segment, and the opening if there is one.

    On CUDA in half precision these are the kernels of ``segment_kernels.py``. Elsewhere, and where they cannot be
    built, it is one SDPA call per segment, which is exact in float32, and many times as fast on a CPU as one call with
    a block-diagonal mask.

    Args:
        query: (T, heads, head_dim).
        key: (T, key_value_heads, head_dim); each serves ``heads / key_value_heads`` query heads in turn.
        value: as ``key``.
        segments: of the T rows.
        causal: whether a row sees only itself and what comes before.
        scale: multiplies the scores.

    Returns:
        (T, heads, head_dim).
    """
    # On the meta device, where memory is planned, lengths cannot be read: the kernels' shapes stand for both ways.
    if query.is_meta or (segments.by_kernels and query.dtype in (torch.bfloat16, torch.float16)):
        attended, _ = _attend(query, key, value, segments.first_T, segments.end_T, segments.opening, causal, scale)
        return attended
    lengths = [stop - start for start, stop in pairwise(segments.bounds_N1.tolist())]
    parts = [part.transpose(0, 1)[None].split(lengths, dim=2) for part in (query, key, value)]
    opening = (parts[1][0], parts[2][0]) if segments.opening else None
    attended = [
        _attend_plainly(*segment, opening if index else None, causal=causal, scale=scale)
        for index, segment in enumerate(zip(parts[0], parts[1], parts[2], strict=True))
    ]
    return torch.cat(attended, dim=2)[0].transpose(0, 1)


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, opening: tuple[Tensor, Tensor] | None, *, causal: bool, scale: float
) -> Tensor:
    """Of one segment, (1, heads, rows, head_dim), which sees the keys and values of ``opening`` too."""
    mask = None
    if opening is not None:
        key, value = (torch.cat(pair, dim=2) for pair in zip(opening, (key, value), strict=True))
        rows, seen = query.shape[2], key.shape[2]
        mask = query.new_ones((rows, seen), dtype=torch.bool).tril(seen - rows) if causal else None
    alone = causal and mask is None
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=alone, scale=scale, enable_gqa=True)


@library.custom_op("hebrew_asr::segment_attention", mutates_args=(), device_types="cuda")
def _attend(
    query: Tensor, key: Tensor, value: Tensor, first_T: Tensor, end_T: Tensor, opening: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """What is attended to, and the logarithms of the softmax's sums, (heads, T) fp32, to base 2."""
    from hebrew_asr.passes.segment_kernels import Sight, forward  # Triton is only there where torch has CUDA

    sight = Sight(first_T, end_T, opening, causal, scale)
    return forward(query.contiguous(), key.contiguous(), value.contiguous(), sight)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[1], query.shape[0])
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(shape, dtype=torch.float32)


@library.custom_op("hebrew_asr::segment_attention_backward", mutates_args=(), device_types="cuda")
def _attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    logsum: Tensor,
    first_T: Tensor,
    end_T: Tensor,
    opening: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    from hebrew_asr.passes.segment_kernels import Sight, backward

    gradient, query, key, value = (part.contiguous() for part in (gradient, query, key, value))
    sight = Sight(first_T, end_T, opening, causal, scale)
    return backward(gradient, query, key, value, attended, logsum, sight)


@_attend_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    query_gradient, key_gradient, value_gradient = (
        torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value)
    )
    return query_gradient, key_gradient, value_gradient


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.opening, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _give_back(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, first_T, end_T, attended, logsum = ctx.saved_tensors
    bounds = (first_T, end_T, ctx.opening, ctx.causal, ctx.scale)
    return *_attend_backward(gradient, query, key, value, attended, logsum, *bounds), *(None,) * 5


_attend.register_autograd(_give_back, setup_context=_keep)
