"""A handful of static shapes for packed batches, so that a compiled graph is built once for each and then reused.

A batch is padded up to the smallest shape that holds it. The padding is whole segments of its own after the last clip:
no clip attends to it, no label lies in it, so loss and gradients stay those of the batch alone. The shapes follow from
the lengths of the data, the batching and the recipe only: every rank and every resumed run finds the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

NUM_SHAPES = 32
"""Each costs a recording where CUDA graphs are used, and an allocation pattern where not. Padding is then 1 % of the
tokens at 64 clips a step and 4 % at 8."""
_ALIGNMENT = 64
"""Rows of a matrix product: whole tiles."""
_GROWTH = 1.25


@dataclass(frozen=True)
class Shape:
    """Sizes of a packed batch: what one needs, or what a graph is made for."""

    tokens: int
    audio_tokens: int
    chunks: int
    windows: int
    clips: int
    labels: int
    longest_window: int
    longest_clip: int
    """In tokens."""

    def holds(self, needed: Shape) -> bool:
        """Whether a batch of ``needed`` can be padded to this shape with no segment empty or too long."""
        return (
            self.chunks >= needed.chunks
            and self.labels >= needed.labels
            and self.longest_window >= needed.longest_window
            and self.longest_clip >= needed.longest_clip
            and _can_fill(self.tokens - needed.tokens, self.clips - needed.clips, self.longest_clip)
            and _can_fill(self.audio_tokens - needed.audio_tokens, self.windows - needed.windows, self.longest_window)
        )


def _can_fill(items: int, segments: int, longest: int) -> bool:
    """Attention over an empty segment can give NaN, so each padding segment takes at least one item."""
    return 1 <= segments <= items <= segments * longest


def choose_shapes(needed: Sequence[Shape], count: int) -> list[Shape]:
    """At most ``count`` shapes, smallest first, that waste the fewest tokens on batches like ``needed``.

    The largest one lies well above everything seen, for the rare batch; the others are the best cut points.
    """
    ordered = sorted(needed, key=astuple)
    tokens = [shape.tokens for shape in ordered]
    shapes = [_roomy(_maximum(ordered[: cut + 1])) for cut in _cut_points(tokens, count - 1)]
    values = np.array([astuple(shape) for shape in ordered], dtype=np.float64)
    # Five deviations: a batch beyond it should not occur in a whole run.
    rare = np.maximum(values.max(axis=0), values.mean(axis=0) + 5 * values.std(axis=0))
    rare[-2:] = values[:, -2:].max(axis=0)
    shapes.append(_roomy(Shape(*(math.ceil(value) for value in rare))))
    return list(dict.fromkeys(shapes))


def fitting(needed: Shape, shapes: Sequence[Shape]) -> Shape:
    """The smallest of ``shapes`` that holds ``needed``, or the largest grown until it does."""
    for shape in shapes:
        if shape.holds(needed):
            return shape
    longest_window = max(shapes[-1].longest_window, needed.longest_window)
    longest_clip = max(shapes[-1].longest_clip, needed.longest_clip)
    sizes = astuple(shapes[-1])[:-2]
    while True:
        grown = _roomy(Shape(*sizes, longest_window=longest_window, longest_clip=longest_clip))
        if grown.holds(needed):
            return grown
        sizes = tuple(math.ceil(size * _GROWTH) for size in sizes)


def fill(items: int, segments: int) -> list[int]:
    """``items`` dealt to ``segments`` padding segments as evenly as can be."""
    return [items // segments + (index < items % segments) for index in range(segments)]


def _maximum(shapes: Sequence[Shape]) -> Shape:
    return Shape(*(max(sizes) for sizes in zip(*map(astuple, shapes), strict=True)))


def _roomy(largest: Shape) -> Shape:
    """A shape for batches up to ``largest``: enough padding segments for any smaller one, and an item for each."""
    longest_clip, longest_window = _aligned(largest.longest_clip), _aligned(largest.longest_window)
    more_clips = 1 + math.ceil(largest.tokens / longest_clip)
    more_windows = 1 + math.ceil(largest.audio_tokens / longest_window)
    return Shape(
        tokens=_aligned(largest.tokens + more_clips),
        audio_tokens=_aligned(largest.audio_tokens + more_windows),
        chunks=8 * math.ceil(largest.chunks / 8),
        windows=largest.windows + more_windows,
        clips=largest.clips + more_clips,
        labels=_aligned(largest.labels),
        longest_window=longest_window,
        longest_clip=longest_clip,
    )


def _aligned(size: int) -> int:
    return _ALIGNMENT * math.ceil(size / _ALIGNMENT)


def _cut_points(ordered: Sequence[int], count: int) -> list[int]:
    """Indices into ``ordered`` (the last one among them) such that rounding up to the next one costs least in all.

    Dynamic programming over the number of cuts; exact.
    """
    if count < 1:
        return []
    values, size = np.asarray(ordered, dtype=np.float64), len(ordered)
    totals = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, size + 1)
    cost = values * stop - totals[1:]  # one cut at each index: everything up to it is rounded up to it
    paths: list[list[int]] = [[index] for index in range(size)]
    for _ in range(1, min(count, size)):
        best = list(range(size))
        lower = cost.copy()
        for end in range(1, size):
            waste = cost[:end] + values[end] * (end - np.arange(end)) - (totals[end + 1] - totals[1 : end + 1])
            chosen = int(waste.argmin())
            if waste[chosen] < lower[end]:
                lower[end], best[end] = waste[chosen], chosen
        paths = [paths[best[end]] + [end] if best[end] != end else paths[end] for end in range(size)]
        cost = lower
    return sorted(set(paths[-1]))
