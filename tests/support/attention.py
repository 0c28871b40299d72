"""Attention that any device and any graph can hold."""

from __future__ import annotations

import torch


def dense_attention(query, key, value, cu_seqlens, max_seqlen, *, causal, scale):
    """Attention within segments as plain tensor operations: ``varlen_attention`` for graphs and the meta device."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    segment = torch.searchsorted(cu_seqlens[1:], torch.arange(len(query), device=query.device), right=True)
    visible = segment[:, None] == segment[None]
    visible = visible.tril() if causal else visible
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value)
