"""Attention within the segments of a packed sequence."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, causal: bool, scale: float
) -> Tensor:
    """Softmax attention in which every token sees its own segment only.

    On CUDA in half precision this is FlashAttention's variable-length kernel; elsewhere one SDPA call a segment, which
    is exact in float32 and ten times as fast on a CPU as one call with a block-diagonal mask (16 segments of 60).

    Args:
        query: (tokens, heads, head_dim).
        key: (tokens, key_value_heads, head_dim); each serves ``heads / key_value_heads`` query heads in turn.
        value: as ``key``.
        cu_seqlens: (segments + 1,) int32, from 0 to ``tokens``. No segment may be empty: the kernel can give NaN.
        max_seqlen: length of the longest segment, or more.
        causal: whether a token sees only itself and what comes before.
        scale: multiplies the scores.

    Returns:
        (tokens, heads, head_dim).
    """
    # On the meta device, where memory is planned, lengths cannot be read: the kernel's shapes stand for both ways.
    if query.is_meta or (query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)):
        window = (-1, 0) if causal else (-1, -1)
        attended = varlen_attn(
            query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=window
        )
        assert isinstance(attended, Tensor)  # it is a pair only when auxiliary outputs are asked for
        return attended
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    segments = zip(*(part.transpose(0, 1)[None].split(lengths, dim=2) for part in (query, key, value)), strict=True)
    attended = [
        F.scaled_dot_product_attention(*segment, is_causal=causal, scale=scale, enable_gqa=True) for segment in segments
    ]
    return torch.cat(attended, dim=2)[0].transpose(0, 1)
