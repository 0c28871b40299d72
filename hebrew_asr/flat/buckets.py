"""Where gradients lie in what is reduced: buckets of columns, so that one collective brings each rank what it owns.

Every rank owns a slice of each param group; all its slices, end to end, are what it owns of the gradients. A bucket
takes the same columns of every rank's. Groups above the seam (``passes/seam.py``) come first and have buckets of their
own, so that their reduction never waits for gradients from below.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from hebrew_asr.flat.live_rows import Source

_ALIGNMENT = 8
"""bf16 elements in 16 bytes: param groups and buckets begin at such addresses, which kernels read and write whole."""


@dataclass(frozen=True)
class Run:
    """Elements of a source's gradient that lie end to end."""

    source: Source
    first: int
    """Within the flattened source."""
    length: int
    start: int
    """Where they begin, in the slices of all ranks end to end."""


@dataclass(frozen=True)
class Group:
    """A param group, as its gradients are to be laid out."""

    runs: list[Run]
    """What has gradients."""
    share: int
    """Elements of a rank's slice."""
    is_above: bool
    """Whether all of it lies above the seam."""


@dataclass(frozen=True)
class Piece:
    """A run of a source's elements that lies in one bucket; or of none, where nothing lies."""

    source: Source | None
    start: int
    """First element within the flattened source."""
    length: int
    at: int
    """First element within the bucket."""

    def form(self) -> Tensor:
        """Of the shape in which gradients are copied here: the source's own, if it lies here as a whole."""
        if isinstance(self.source, Tensor) and self.source.numel() == self.length:
            return self.source
        return torch.empty(self.length, device="meta")

    def gradient(self) -> Tensor | None:
        """Of that shape; None if there is none."""
        gradient = None if self.source is None else self.source.grad
        if gradient is None or gradient.numel() == self.length:
            return gradient
        return gradient.reshape(-1).narrow(0, self.start, self.length)


@dataclass(frozen=True)
class Bucket:
    """Columns of every rank's slice, (ranks × columns,) in all, rank by rank."""

    first: int
    """First column."""
    columns: int
    pieces: list[Piece] = field(default_factory=list)
    """As they lie in it, end to end."""
    forms: list[Tensor] = field(default_factory=list)
    """Of the pieces: what the bucket is cut into in one call. By hundreds of calls, each of which lets another thread
    run, the host would spend as long on this as the device on a small step."""
    ends: list[Source] = field(default_factory=list)
    """Sources of which no later bucket has a piece."""

    @property
    def sources(self) -> set[Source]:
        """Those of which a piece lies here."""
        return {piece.source for piece in self.pieces if piece.source is not None}

    def close(self, ranks: int) -> None:
        """When all sources are dealt: sort their pieces, and fill what is between them."""
        at, dealt = 0, sorted(self.pieces, key=lambda piece: piece.at)
        self.pieces.clear()
        for piece in [*dealt, Piece(None, 0, 0, ranks * self.columns)]:
            if piece.at > at:
                self.pieces.append(Piece(None, 0, piece.at - at, at))
            if piece.length:
                self.pieces.append(piece)
            at = piece.at + piece.length
        self.forms.extend(piece.form() for piece in self.pieces)

    def take_gradients(self, whole: Tensor) -> None:
        """Copy them to ``whole``, 0 where there are none, and drop those that no later bucket takes."""
        filled, fresh, empty = [], [], []
        for piece, place in zip(self.pieces, _unflatten_dense_tensors(whole, self.forms), strict=True):
            gradient = piece.gradient()
            if gradient is None:
                empty.append(place)
            else:
                filled.append(place)
                fresh.append(gradient)
        if empty:
            torch._foreach_zero_(empty)
        if filled:
            torch._foreach_copy_(filled, fresh)
        for source in self.ends:
            source.grad = None


@dataclass(frozen=True)
class Layout:
    """Of all gradients, the same on every rank."""

    places: list[tuple[int, int]]
    """Of every param group within a rank's slice of all gradients: its first element, and how many there are."""
    length: int
    """Elements of that slice."""
    buckets: list[Bucket]
    """In the order of their reduction."""
    num_above: int
    """How many of them, the first ones, are of groups above the seam."""

    @staticmethod
    def of(groups: list[Group], ranks: int, bucket_size: int) -> Layout:
        """``bucket_size``: elements of all ranks that are reduced at a time; of a single one, all are."""
        places: list[tuple[int, int]] = [(0, 0)] * len(groups)
        width = max(_ALIGNMENT, bucket_size // ranks // _ALIGNMENT * _ALIGNMENT)
        buckets: list[Bucket] = []
        numbers, end = [], 0
        for is_above in (True, False):
            first = end
            for index, group in enumerate(groups):
                if group.is_above == is_above:
                    places[index] = end, group.share
                    end += -(-group.share // _ALIGNMENT) * _ALIGNMENT
            step = width if ranks > 1 else max(1, end - first)
            buckets += [Bucket(start, min(step, end - start)) for start in range(first, end, step)]
            numbers.append(len(buckets))
        layout = Layout(places, end, buckets, num_above=numbers[0])
        for group, place in zip(groups, places, strict=True):
            for run in group.runs:
                layout._deal(run, *place)
        layout._close(ranks)
        return layout

    def _deal(self, run: Run, offset: int, share: int) -> None:
        """Cut a run into pieces of buckets; its group has ``share`` elements a rank, from column ``offset`` on."""
        done = 0
        while done < run.length:
            rank, inside = divmod(run.start + done, share)
            bucket = self.buckets[bisect_right(self.buckets, offset + inside, key=lambda one: one.first) - 1]
            column = offset + inside - bucket.first
            length = min(run.length - done, share - inside, bucket.columns - column)
            bucket.pieces.append(Piece(run.source, run.first + done, length, rank * bucket.columns + column))
            done += length

    def _close(self, ranks: int) -> None:
        seen: set[Source] = set()
        for bucket in reversed(self.buckets):
            bucket.close(ranks)
            last = bucket.sources - seen
            bucket.ends.extend(last)
            seen |= last
