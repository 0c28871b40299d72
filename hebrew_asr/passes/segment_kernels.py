"""Attention within segments as Triton kernels: forward, and backward without atomic additions.

FlashAttention's variable-length kernels give each segment tiles of its own and add up the gradients of queries
atomically, in fp32, which is converted afterwards; gradients of keys that several query heads share are made for each
head and then summed. Clips of speech have some 90 tokens, less than a tile, so all this takes longer than attention.
Here tiles are cut from the packed sequence wherever segments end, and each gradient is written by one program. To those
of the opening's keys and values another one adds, afterwards, what the queries of all clips give.

Softmax is taken in powers of two, as in FlashAttention 2 (Dao 2023): ``scale`` comes multiplied by log2(e).
``unscaled`` comes as it is, for the gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Any = triton.jit
"""Typed so that sizes can be given where ``constexpr`` stands, and launches have options."""
_LN_2 = math.log(2)
_FORWARD = {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
_QUERY_GRADIENT = {"BLOCK_Q": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
_KEY_GRADIENT = {"BLOCK_Q": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 1}
_OPENING_GRADIENT = {"BLOCK_T": 128, "num_warps": 8}
"""The fastest of those tried for 64 clips on an H200 (tests/benchmarks/LOG.md)."""
_UNSEEN: Any = tl.constexpr(-1e30)
"""A score that weighs nothing beside any real one, and is finite: two infinite ones have no difference."""


@jit
def _rows_of(base, rows, num_rows, head, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of one head of a (num_rows, HEADS, D) tensor; zeros beyond its ends."""
    columns = tl.arange(0, BLOCK_D)
    places = (rows[:, None] * HEADS + head) * D + columns[None, :]
    return tl.load(base + places, mask=(rows < num_rows)[:, None] & (columns < D)[None, :], other=0.0)


@jit
def _keys_and_values(key, value, rows, num_rows, head, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The same of two tensors."""
    keys = _rows_of(key, rows, num_rows, head, HEADS, D, BLOCK_D)
    return keys, _rows_of(value, rows, num_rows, head, HEADS, D, BLOCK_D)


@jit
def _put_rows(base, values, rows, num_rows, head, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The other way round."""
    columns = tl.arange(0, BLOCK_D)
    places = (rows[:, None] * HEADS + head) * D + columns[None, :]
    mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
    tl.store(base + places, values.to(base.dtype.element_ty), mask=mask)


@jit
def _bounds(first, end, rows, num_rows):
    """Of each row's segment: its first row and the one after its last; rows beyond the tensor see nothing."""
    inside = rows < num_rows
    return tl.load(first + rows, mask=inside, other=0), tl.load(end + rows, mask=inside, other=0)


@jit
def _tile_ends(first, end, rows, num_rows):
    """Of the segments that ``rows`` are of, by their ``first`` and ``end``: the first row of all, and where all end."""
    return tl.min(tl.where(rows < num_rows, first, num_rows)), tl.max(end)


@jit
def _within(others, first, end):
    """(rows, others): whether these lie in the segment of each row."""
    return (others[None, :] >= first[:, None]) & (others[None, :] < end[:, None])


@jit
def _seen(rows, columns, first, end, CAUSAL: tl.constexpr):
    """(rows, columns): which keys the query of each row sees in its segment."""
    seen = _within(columns, first, end)
    if CAUSAL:
        seen = seen & (columns[None, :] <= rows[:, None])
    return seen


@jit
def _weights(left, right, total, seen, scale):
    """Softmax of ``left``'s products with ``right``, of which ``total`` is the logarithm of the sum."""
    return tl.where(seen, tl.exp2(tl.dot(left, right.T) * scale - total), 0.0)


@jit
def _more(scores, seen, value, highest, total, summed):
    """Softmax so far, with the keys of one more tile (Milakov and Gimelshein 2018)."""
    scores = tl.where(seen, scores, _UNSEEN)
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    less = tl.exp2(highest - higher)
    summed = tl.dot(weights.to(value.dtype), value, summed * less[:, None])
    return higher, total * less + tl.sum(weights, 1), summed


@jit
def forward_kernel(
    query, key, value, attended, logsum, first, end, num_rows, scale, opening,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr, CAUSAL: tl.constexpr,
    OPENS: tl.constexpr,
):  # fmt: skip
    """One tile of queries, one head. ``logsum``: (HEADS, rows) fp32, base 2."""
    rows, head = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.program_id(1)
    key_head = head // (HEADS // KEY_HEADS)
    row_first, row_end = _bounds(first, end, rows, num_rows)
    own = _rows_of(query, rows, num_rows, head, HEADS, D, BLOCK_D)
    highest = tl.full((BLOCK_Q,), _UNSEEN, tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    summed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    if OPENS:
        opened = tl.arange(0, BLOCK_O)
        opening_keys, opening_values = _keys_and_values(key, value, opened, opening, key_head, KEY_HEADS, D, BLOCK_D)
        sees_opening = (opened < opening)[None, :] & (row_first >= opening)[:, None]
        scores = tl.dot(own, opening_keys.T) * scale
        highest, total, summed = _more(scores, sees_opening, opening_values, highest, total, summed)
    low, high = _tile_ends(row_first, row_end, rows, num_rows)
    if CAUSAL:
        high = tl.minimum(high, (tl.program_id(0) + 1) * BLOCK_Q)
    for at in tl.range(low, high, BLOCK_K):
        columns = at + tl.arange(0, BLOCK_K)
        keys, values = _keys_and_values(key, value, columns, num_rows, key_head, KEY_HEADS, D, BLOCK_D)
        seen = _seen(rows, columns, row_first, row_end, CAUSAL)
        highest, total, summed = _more(tl.dot(own, keys.T) * scale, seen, values, highest, total, summed)
    _put_rows(attended, summed / total[:, None], rows, num_rows, head, HEADS, D, BLOCK_D)
    tl.store(logsum + head * num_rows + rows, highest + tl.log2(total), mask=rows < num_rows)


@jit
def query_gradient_kernel(
    query, key, value, attended, logsum, gradient, query_gradient, shares, opening_gradients, first, end, num_rows,
    scale, unscaled, opening,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr, CAUSAL: tl.constexpr,
    OPENS: tl.constexpr,
):  # fmt: skip
    """One tile of queries, all query heads of one key head.

    Gives ``query_gradient``; ``shares``, (HEADS, rows) fp32, the inner products of ``gradient`` and ``attended``; and
    what these queries add to the gradients of the opening's keys and values: ``opening_gradients``, (2, tiles,
    BLOCK_O, KEY_HEADS, D) fp32.
    """
    tile, key_head = tl.program_id(0), tl.program_id(1)
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row_first, row_end = _bounds(first, end, rows, num_rows)
    low, high = _tile_ends(row_first, row_end, rows, num_rows)
    if CAUSAL:
        high = tl.minimum(high, (tile + 1) * BLOCK_Q)
    opened = tl.arange(0, BLOCK_O)
    opening_keys, opening_values = _keys_and_values(key, value, opened, opening, key_head, KEY_HEADS, D, BLOCK_D)
    sees_opening = (opened < opening)[None, :] & (row_first >= opening)[:, None]
    to_keys = tl.zeros((BLOCK_O, BLOCK_D), tl.float32)
    to_values = tl.zeros((BLOCK_O, BLOCK_D), tl.float32)
    for head in tl.range(key_head * (HEADS // KEY_HEADS), (key_head + 1) * (HEADS // KEY_HEADS)):
        own = _rows_of(query, rows, num_rows, head, HEADS, D, BLOCK_D)
        incoming = _rows_of(gradient, rows, num_rows, head, HEADS, D, BLOCK_D)
        outgoing = _rows_of(attended, rows, num_rows, head, HEADS, D, BLOCK_D)
        share = tl.sum(incoming.to(tl.float32) * outgoing.to(tl.float32), 1)
        tl.store(shares + head * num_rows + rows, share, mask=rows < num_rows)
        total = tl.load(logsum + head * num_rows + rows, mask=rows < num_rows, other=0.0)
        summed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        if OPENS:
            opening_weights = _weights(own, opening_keys, total[:, None], sees_opening, scale)
            to_scores = opening_weights * (tl.dot(incoming, opening_values.T) - share[:, None])
            summed = tl.dot(to_scores.to(own.dtype), opening_keys, summed)
            to_keys = tl.dot(to_scores.to(own.dtype).T, own, to_keys)
            to_values = tl.dot(opening_weights.to(own.dtype).T, incoming, to_values)
        for at in tl.range(low, high, BLOCK_K):
            columns = at + tl.arange(0, BLOCK_K)
            keys, values = _keys_and_values(key, value, columns, num_rows, key_head, KEY_HEADS, D, BLOCK_D)
            seen = _seen(rows, columns, row_first, row_end, CAUSAL)
            weights = _weights(own, keys, total[:, None], seen, scale)
            of_scores = weights * (tl.dot(incoming, values.T) - share[:, None])
            summed = tl.dot(of_scores.to(own.dtype), keys, summed)
        _put_rows(query_gradient, summed * unscaled, rows, num_rows, head, HEADS, D, BLOCK_D)
    if OPENS:
        places, halfway = tile * BLOCK_O + opened, tl.num_programs(0) * BLOCK_O
        _put_rows(opening_gradients, to_keys * unscaled, places, halfway, key_head, KEY_HEADS, D, BLOCK_D)
        _put_rows(opening_gradients, to_values, places + halfway, 2 * halfway, key_head, KEY_HEADS, D, BLOCK_D)


@jit
def key_gradient_kernel(
    query, key, value, logsum, gradient, shares, key_gradient, value_gradient, first, end, num_rows, scale,
    unscaled,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One tile of keys, one key head: from the queries of their own segments."""
    columns, key_head = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K), tl.program_id(1)
    column_first, column_end = _bounds(first, end, columns, num_rows)
    keys, values = _keys_and_values(key, value, columns, num_rows, key_head, KEY_HEADS, D, BLOCK_D)
    low, high = _tile_ends(column_first, column_end, columns, num_rows)
    if CAUSAL:
        low = tl.maximum(low, tl.program_id(0) * BLOCK_K)
    to_keys = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    to_values = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for head in tl.range(key_head * (HEADS // KEY_HEADS), (key_head + 1) * (HEADS // KEY_HEADS)):
        for at in tl.range(low, high, BLOCK_Q):
            rows = at + tl.arange(0, BLOCK_Q)
            queries = _rows_of(query, rows, num_rows, head, HEADS, D, BLOCK_D)
            incoming = _rows_of(gradient, rows, num_rows, head, HEADS, D, BLOCK_D)
            total = tl.load(logsum + head * num_rows + rows, mask=rows < num_rows, other=0.0)
            share = tl.load(shares + head * num_rows + rows, mask=rows < num_rows, other=0.0)
            seen = _within(rows, column_first, column_end)
            if CAUSAL:
                seen = seen & (columns[:, None] <= rows[None, :])
            weights = _weights(keys, queries, total[None, :], seen, scale)
            to_values = tl.dot(weights.to(values.dtype), incoming, to_values)
            of_scores = weights * (tl.dot(values, incoming.T) - share[None, :])
            to_keys = tl.dot(of_scores.to(keys.dtype), queries, to_keys)
    _put_rows(key_gradient, to_keys * unscaled, columns, num_rows, key_head, KEY_HEADS, D, BLOCK_D)
    _put_rows(value_gradient, to_values, columns, num_rows, key_head, KEY_HEADS, D, BLOCK_D)


@jit(do_not_specialize=["tiles"])  # else some shape would have it compiled while a pass is recorded
def opening_gradient_kernel(
    opening_gradients, key_gradient, value_gradient, tiles,
    KEY_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One row of the opening, one key head: adds what all tiles of queries have given, in their order."""
    row, key_head = tl.program_id(0), tl.program_id(1)
    to_key = tl.zeros((BLOCK_D,), tl.float32)
    to_value = tl.zeros((BLOCK_D,), tl.float32)
    for at in tl.range(0, tiles, BLOCK_T):
        places = (at + tl.arange(0, BLOCK_T)) * BLOCK_O + row
        last = tiles * BLOCK_O
        to_key += tl.sum(_rows_of(opening_gradients, places, last, key_head, KEY_HEADS, D, BLOCK_D), 0)
        places, last = places + last, 2 * last
        to_value += tl.sum(_rows_of(opening_gradients, places, last, key_head, KEY_HEADS, D, BLOCK_D), 0)
    rows = row + tl.arange(0, 1)
    to_key += tl.sum(_rows_of(key_gradient, rows, row + 1, key_head, KEY_HEADS, D, BLOCK_D).to(tl.float32), 0)
    to_value += tl.sum(_rows_of(value_gradient, rows, row + 1, key_head, KEY_HEADS, D, BLOCK_D).to(tl.float32), 0)
    _put_rows(key_gradient, to_key[None, :], rows, row + 1, key_head, KEY_HEADS, D, BLOCK_D)
    _put_rows(value_gradient, to_value[None, :], rows, row + 1, key_head, KEY_HEADS, D, BLOCK_D)


class Sight(NamedTuple):
    """What every query sees, and what its scores are multiplied by."""

    first: Tensor
    """(T,) int32: the first row of its segment."""
    end: Tensor
    """(T,) int32: the one after its last."""
    opening: int
    """Rows of the first segment, if all others see it."""
    causal: bool
    scale: float


def forward(query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """(T, heads, D), and the logarithms of the softmax's sums, (heads, T) fp32, to base 2; all tensors contiguous."""
    first, end, opening, causal, scale = sight
    attended, logsum = torch.empty_like(query), query.new_empty((query.shape[1], len(query)), dtype=torch.float32)
    grid = (_tiles(query, _FORWARD["BLOCK_Q"]), query.shape[1])
    forward_kernel[grid](
        *(query, key, value, attended, logsum, first, end, len(query), scale / _LN_2, opening, *_sizes(query, key)),
        BLOCK_O=_power(opening),
        CAUSAL=causal,
        OPENS=opening > 0,
        **_FORWARD,
    )
    return attended, logsum


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    logsum: Tensor,
    sight: Sight,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; all tensors contiguous."""
    first, end, opening, causal, scale = sight
    query_gradient, key_gradient, value_gradient = map(torch.empty_like, (query, key, value))
    shares, sizes = torch.empty_like(logsum), _sizes(query, key)
    tiles, block = _tiles(query, _QUERY_GRADIENT["BLOCK_Q"]), _power(opening)
    shape = (2, tiles if opening else 0, block, *key.shape[1:])
    opening_gradients = key.new_empty(shape, dtype=torch.float32)
    query_gradient_kernel[tiles, key.shape[1]](
        *(query, key, value, attended, logsum, gradient, query_gradient, shares, opening_gradients, first, end),
        *(len(query), scale / _LN_2, scale, opening, *sizes),
        BLOCK_O=block,
        CAUSAL=causal,
        OPENS=opening > 0,
        **(_QUERY_GRADIENT if block <= 32 else _QUERY_GRADIENT | {"num_stages": 1}),
    )
    key_gradient_kernel[_tiles(key, _KEY_GRADIENT["BLOCK_K"]), key.shape[1]](
        *(query, key, value, logsum, gradient, shares, key_gradient, value_gradient, first, end),
        *(len(query), scale / _LN_2, scale, *sizes),
        CAUSAL=causal,
        **_KEY_GRADIENT,
    )
    if opening:
        opening_gradient_kernel[opening, key.shape[1]](
            *(opening_gradients, key_gradient, value_gradient, tiles, *sizes[1:], block), **_OPENING_GRADIENT
        )
    return query_gradient, key_gradient, value_gradient


def _tiles(rows: Tensor, block: int) -> int:
    return -(-len(rows) // block)


def _sizes(query: Tensor, key: Tensor) -> tuple[int, int, int, int]:
    return query.shape[1], key.shape[1], query.shape[2], _power(query.shape[2])


def _power(size: int) -> int:
    """The power of two that holds it; 16 at least, as tensor cores ask for."""
    return 1 << max(4, (size - 1).bit_length())
