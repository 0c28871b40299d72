"""Attention that any device and any graph can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dense_attention(query, key, value, cu_seqlens, max_seqlen, *, causal, scale):
    """Attention within segments by a mask: ``varlen_attention`` for graphs and the meta device."""
    segment = torch.searchsorted(cu_seqlens[1:], torch.arange(len(query), device=query.device), right=True)
    visible = segment[:, None] == segment[None]
    visible = visible.tril() if causal else visible
    heads_first = (part.transpose(0, 1)[None] for part in (query, key, value))
    attended = F.scaled_dot_product_attention(*heads_first, attn_mask=visible, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1)
