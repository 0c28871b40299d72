"""Attention that any device and any graph can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dense_attention(query, key, value, segments, *, causal, scale):
    """Attention within segments by a mask: ``segment_attention`` for graphs and the meta device."""
    rows = torch.arange(len(query), device=query.device)
    visible = (segments.first_T[:, None] <= rows) & (rows < segments.end_T[:, None])
    visible = visible.tril() if causal else visible
    visible = visible | ((rows < segments.opening) & (segments.first_T[:, None] >= segments.opening))
    heads_first = (part.transpose(0, 1)[None] for part in (query, key, value))
    attended = F.scaled_dot_product_attention(*heads_first, attn_mask=visible, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1)
