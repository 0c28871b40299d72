"""Whether weights are equal to the bit, from two numbers of each."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 1 << 24
"""Elements that a GPU copies to int64 at a time."""
_CHUNK_IN_CACHE = 1 << 18
"""Elements that a CPU copies at a time: it takes five times as long when they do not fit its cache."""


def fingerprint(tensor: Tensor) -> Tensor:
    """Two int64 sums over a tensor's bits, of shape (2,): equal for equal bits, almost surely different otherwise.

    The second one weighs each element by its place, so that exchanged ones are noticed.
    """
    bits = tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    size = CHUNK if bits.is_cuda else _CHUNK_IN_CACHE
    for index, chunk in enumerate(bits.split(size)):
        wide = chunk.to(torch.int64)
        places = torch.arange(index * size, index * size + len(wide), device=wide.device)
        sums[0] += wide.sum()
        sums[1] += (wide * (wide + places)).sum()
    return sums
