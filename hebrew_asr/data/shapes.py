"""Pads batches to at most 32 shapes, so that CUDA graphs and allocator blocks are reused.

Batches that run at the same time, one on each rank, are padded to the smallest shape that holds them all: none would
be done before the longest, and a graph for a new shape is recorded by all ranks at once. The padding is whole segments
after the last clip: no clip attends to them and they have no label, so loss and gradients stay those of the batch
alone. The shapes follow from the lengths of the data, the batching and the recipe alone: every rank and every resumed
run finds the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from hebrew_asr.audio.frames import EncoderGeometry, num_audio_tokens, num_chunks, num_frames
from hebrew_asr.text.prompt import PromptTokens

NUM_SHAPES = 32
"""Each costs a graph recording where CUDA graphs are used, and an allocation pattern elsewhere. Of the longest rank's
tokens padding is then 1 % at 64 clips on one rank and 4 % at 8 clips on each of eight."""
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

    def holds(self, needed: Shape) -> bool:
        """Whether a batch of ``needed`` can be padded to this shape with no segment empty."""
        return (
            self.chunks >= needed.chunks
            and self.labels >= needed.labels
            and 1 <= self.clips - needed.clips <= self.tokens - needed.tokens
            and 1 <= self.windows - needed.windows <= self.audio_tokens - needed.audio_tokens
        )


def needed_shape(
    samples: Sequence[int], labels: Sequence[int], prompt: PromptTokens, geometry: EncoderGeometry
) -> Shape:
    """Sizes of the batch that clips of these lengths make: samples after speed perturbation, and target ids."""
    frames = [num_frames(count) for count in samples]
    audio_tokens = [num_audio_tokens(count) for count in frames]
    around = len(prompt.from_audio(0)) - 1
    tokens = [around + count + length for count, length in zip(audio_tokens, labels, strict=True)]
    windows = cut_windows(audio_tokens, geometry)
    return packed_shape(frames, audio_tokens, windows, len(prompt.before_audio), tokens, labels)


def packed_shape(
    frames: Sequence[int],
    audio_tokens: Sequence[int],
    windows: Sequence[int],
    opening_tokens: int,
    tokens: Sequence[int],
    labels: Sequence[int],
) -> Shape:
    """Sizes of a batch, from the sizes of its clips, of their windows and of what they share."""
    return Shape(
        tokens=opening_tokens + sum(tokens),
        audio_tokens=sum(audio_tokens),
        chunks=sum(map(num_chunks, frames)),
        windows=len(windows),
        clips=len(tokens),
        labels=sum(labels),
    )


def cut_windows(audio_tokens: Sequence[int], geometry: EncoderGeometry) -> list[int]:
    """Lengths of all clips' attention windows."""
    windows = []
    for count in audio_tokens:
        full, rest = divmod(count, geometry.window_tokens)
        windows += [geometry.window_tokens] * full + ([rest] if rest else [])
    return windows


def choose_shapes(needed: Sequence[Sequence[Shape]], count: int) -> list[Shape]:
    """At most ``count`` shapes, smallest first, that waste few tokens on batches like ``needed``.

    The largest lies well above everything seen, for the rare batch. The others are made for the best cut points: each
    holds everything of ``needed`` up to its cut, in the order of tokens.

    Args:
        needed: batches that run at the same time, one on each rank, and so take one shape.
        count: at least 1.
    """
    ordered = sorted(needed, key=_most_tokens)
    demands = np.array([np.max([*map(_demand, together)], axis=0) for together in ordered])
    cuts = _cut_points([*map(_most_tokens, ordered)], count - 1)
    # Five deviations: a batch beyond it should not occur in a whole run.
    rare = np.maximum(demands.max(axis=0), demands.mean(axis=0) + 5 * demands.std(axis=0))
    chosen = [*(demands[: cut + 1].max(axis=0) for cut in cuts), np.ceil(rare)]
    return list(dict.fromkeys(_meeting(demand.astype(int).tolist()) for demand in chosen))


def holding_all(needed: Sequence[Shape], shapes: Sequence[Shape]) -> Sequence[Shape]:
    """Those of ``shapes`` that hold each of ``needed``; all of them if none does."""
    return [shape for shape in shapes if all(map(shape.holds, needed))] or shapes


def fitting(needed: Shape, shapes: Sequence[Shape]) -> Shape:
    """The smallest of ``shapes`` that holds ``needed``, or the largest grown until it does."""
    for shape in shapes:
        if shape.holds(needed):
            return shape
    demand = _demand(shapes[-1])
    while True:
        demand = [math.ceil(part * _GROWTH) + 1 for part in demand]
        grown = _meeting(demand)
        if grown.holds(needed):
            return grown


def fill(items: int, segments: int) -> list[int]:
    """``items`` dealt to ``segments`` padding segments as evenly as can be."""
    return [items // segments + (index < items % segments) for index in range(segments)]


def _most_tokens(together: Sequence[Shape]) -> int:
    return max(shape.tokens for shape in together)


def _demand(needed: Shape) -> list[int]:
    """What a shape must have at least to hold a batch: chunks, labels, and two numbers each for windows and clips.

    A batch of ``i`` items in ``g`` segments fits into ``I`` items in ``G`` segments if and only if
    ``1 <= G - g <= I - i``, which is ``G >= g + 1`` and ``I - G >= i - g``. On the left stand numbers of the shape
    alone, on the right numbers of the batch alone. So a shape that meets the largest right sides of some batches, each
    from whichever batch, holds every one of these batches.
    """
    windows = needed.windows + 1, needed.audio_tokens - needed.windows
    return [needed.chunks, needed.labels, *windows, needed.clips + 1, needed.tokens - needed.clips]


def _meeting(demand: Sequence[int]) -> Shape:
    """A shape of whole tiles, hardly larger than it must be, that meets ``demand``."""
    chunks, labels, windows, audio_beyond, clips, tokens_beyond = demand
    return Shape(
        tokens=_aligned(clips + tokens_beyond),
        audio_tokens=_aligned(windows + audio_beyond),
        chunks=8 * math.ceil(chunks / 8),
        windows=windows,
        clips=clips,
        labels=_aligned(labels),
    )


def _aligned(size: int) -> int:
    return _ALIGNMENT * math.ceil(size / _ALIGNMENT)


def _cut_points(ordered: Sequence[int], count: int) -> list[int]:
    """Indices into ``ordered`` (the last one among them) such that rounding up to the next one costs least in all.

    Dynamic programming over the number of cuts; exact.
    """
    if count < 1:
        return []
    totals = [0, *accumulate(ordered)]
    # With one cut at each index, everything up to it is rounded up to it.
    costs = [value * index - total for index, (value, total) in enumerate(zip(ordered, totals[1:], strict=True), 1)]
    paths: list[list[int]] = [[index] for index in range(len(ordered))]
    for _ in range(1, min(count, len(ordered))):
        costs, paths = _with_one_more_cut(ordered, totals, costs, paths)
    return paths[-1]


def _with_one_more_cut(
    ordered: Sequence[int], totals: list[int], costs: list[int], paths: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """What it costs, and with which cuts, where it pays, if there may be one more before the last.

    With the cut before at ``j``, one at ``e`` costs ``costs[j] + totals[j + 1] - j * ordered[e]`` and what depends on
    ``e`` alone. These are lines over ``ordered[e]``, which grows: only the lower envelope of the lines is ever asked.
    """
    lower, found = costs[:1], paths[:1]
    envelope: list[tuple[int, int]] = []  # lines, each by the negative of its slope and by its value at 0
    first = 0
    for end in range(1, len(ordered)):
        added = (end - 1, costs[end - 1] + totals[end])
        while len(envelope) - first > 1 and _is_above(envelope[-2], envelope[-1], added):
            envelope.pop()
        envelope.append(added)
        value = ordered[end]
        while first + 1 < len(envelope) and _at(envelope[first + 1], value) < _at(envelope[first], value):
            first += 1
        cost = _at(envelope[first], value) + value * end - totals[end + 1]
        pays = cost < costs[end]
        lower.append(cost if pays else costs[end])
        found.append([*paths[envelope[first][0]], end] if pays else paths[end])
    return lower, found


def _at(line: tuple[int, int], value: int) -> int:
    return line[1] - line[0] * value


def _is_above(left: tuple[int, int], middle: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether ``middle`` is nowhere below both others; the lines fall ever more steeply."""
    return (right[1] - left[1]) * (middle[0] - left[0]) <= (middle[1] - left[1]) * (right[0] - left[0])
