"""DeepSpeed's ZeRO-2 for bf16 weights at ZeRO-1's speed: of the fp32 gradients a rank keeps its own slice alone.

``DeepSpeedZeroOptimizer`` (deepspeed 0.19.8, ``runtime/zero/stage_1_and_2.py``) reduces parameter by parameter, from
hooks that run while backward does. A compiled backward hands over all gradients at once, so there is nothing for that
to run beside, and it costs copies and launches. The layout of weights and masters is kept. After each micro-batch its
gradients are reduced in buckets, of ``reduce_bucket_size`` elements as in DeepSpeed: a bucket takes the same columns of
every rank's slice, so that one copy fills it, and one collective brings each rank all of what it owns. With
``overlap_comm`` there are two, and one is filled while the other travels. ``contiguous_gradients``, ``reduce_scatter``
and ``allgather_bucket_size`` change nothing here. Buckets of weights above the seam of a recorded pass
(``model/seam.py``) come first, and travel while backward goes on below it.

With ``communication_data_type`` fp32 a bucket is copied to fp32 and travels by a reduce-scatter. With bf16 it travels
as it is: every rank sends each owner its part, and the owner adds up in fp32. Half as many bytes make the same sums.
Between machines a reduce-scatter sends less all the same, since it adds up on the way: on several, bf16 means fp32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from hebrew_asr.engine.flat_adamw import FlatAdamW, wait
from hebrew_asr.engine.live_rows import LiveRows
from hebrew_asr.launching.place import local_ranks_from_environment
from hebrew_asr.model.seam import Seam

_ALIGNMENT = 8
"""bf16 elements in 16 bytes: param groups and buckets begin at such addresses, which kernels read and write whole."""


@dataclass(frozen=True)
class _Piece:
    """A run of a parameter's elements that lies in one bucket; or of none, where nothing lies."""

    parameter: Tensor | LiveRows | None
    start: int
    """First element within the flattened parameter."""
    length: int
    at: int
    """First element within the bucket."""

    def form(self) -> Tensor:
        """Of the shape in which gradients are copied here: the parameter's own, if it lies here as a whole."""
        if isinstance(self.parameter, Tensor) and self.parameter.numel() == self.length:
            return self.parameter
        return torch.empty(self.length, device="meta")

    def gradient(self) -> Tensor | None:
        """Of that shape; None if there is none."""
        gradient = None if self.parameter is None else self.parameter.grad
        if gradient is None or gradient.numel() == self.length:
            return gradient
        return gradient.reshape(-1).narrow(0, self.start, self.length)


@dataclass(frozen=True)
class Bucket:
    """Columns of every rank's slice, (ranks × columns,) in all, rank by rank."""

    first: int
    """First column."""
    columns: int
    pieces: list[_Piece] = field(default_factory=list)
    """As they lie in it, end to end."""
    forms: list[Tensor] = field(default_factory=list)
    """Of the pieces: what the bucket is cut into in one call. By hundreds of calls, each of which lets another thread
    run, the host would spend as long on this as the device on a small step."""
    ends: list[Tensor | LiveRows] = field(default_factory=list)
    """Parameters of which no later bucket has a piece."""

    @property
    def parameters(self) -> set[Tensor | LiveRows]:
        """Those of which a piece lies here."""
        return {piece.parameter for piece in self.pieces if piece.parameter is not None}

    def close(self, ranks: int) -> None:
        """When all parameters are dealt: sort their pieces, and fill what is between them."""
        at, dealt = 0, sorted(self.pieces, key=lambda piece: piece.at)
        self.pieces.clear()
        for piece in [*dealt, _Piece(None, 0, 0, ranks * self.columns)]:
            if piece.at > at:
                self.pieces.append(_Piece(None, 0, piece.at - at, at))
            if piece.length:
                self.pieces.append(piece)
            at = piece.at + piece.length
        self.forms.extend(piece.form() for piece in self.pieces)


class FlatZeRO2(FlatAdamW, DeepSpeedZeroOptimizer):
    """``DeepSpeedZeroOptimizer`` with partitioned gradients that are reduced when a micro-batch is over."""

    _offsets: list[int]
    """First element of every param group within this rank's slice of gradients; at the end, how long that is."""
    _lengths: list[int]
    """Elements of every param group there."""
    _buckets: list[Bucket]
    """In the order of their reduction, the same on all ranks."""
    _num_above: int
    """How many of them, the first ones, hold nothing but weights above the seam."""
    _gradients: Tensor | None
    """(slice,) fp32: this rank's share of the gradients' mean over ranks; there from a step's first backward to its
    end."""
    _sends_bf16: bool
    """Whether gradients travel as they are, and owners add them up."""
    _buffers: list[Tensor]
    """fp32 memory of the buckets that are being reduced: to the end of the reduction, and from the end of the backward
    pass, or from its beginning if the pass is cut."""

    @staticmethod
    def convert(optimizer: Any, *, compiled: bool, seam: Seam, kept_rows: Mapping[Tensor, Tensor]) -> None:
        """Turn a fresh ``DeepSpeedZeroOptimizer`` into this: DeepSpeed offers no way to pass one in.

        ``kept_rows``: weights, and of each the rows, (rows, 1) bool, whose gradients are 0.
        """
        for hook in optimizer._grad_acc_hooks:
            hook.remove()
        optimizer._grad_acc_hooks.clear()
        optimizer.__class__ = FlatZeRO2
        optimizer._convert(compiled=compiled, seam=seam)
        optimizer._find_live(kept_rows)
        optimizer._lay_out()

    def _find_live(self, kept_rows: Mapping[Tensor, Tensor]) -> None:
        place = torch_dist.get_rank(self.dp_process_group), self.num_ranks
        for index, (group, master) in enumerate(zip(self._parameters(), self._masters(), strict=True)):
            if len(group) == 1 and group[0] in kept_rows:
                self._live[index] = LiveRows.of(group[0], kept_rows[group[0]], master.numel(), *place)

    def _lay_out(self) -> None:
        masters = zip(self._masters(), self._live, strict=True)
        self._lengths = [master.numel() if rows is None else rows.length for master, rows in masters]
        self._offsets = [0]
        for length in self._lengths:
            self._offsets.append(self._offsets[-1] + -(-length // _ALIGNMENT) * _ALIGNMENT)
        whole, ranks = self._offsets[-1], self.num_ranks
        width = (
            whole
            if ranks == 1
            else min(whole, max(_ALIGNMENT, self.reduce_bucket_size // ranks // _ALIGNMENT * _ALIGNMENT))
        )
        self._buckets = [Bucket(first, min(width, whole - first)) for first in range(0, whole, width)]
        groups = zip(self._lengths, self._parameters(), self.round_robin_bit16_offsets, self._live, strict=True)
        for offset, (length, parameters, starts, rows) in zip(self._offsets, groups, strict=False):
            for parameter, start in zip(parameters if rows is None else [rows], starts, strict=True):
                self._deal(parameter, start, length, offset, width)
        for bucket in self._buckets:
            bucket.close(ranks)
        self._buckets.sort(key=self._is_above, reverse=True)  # otherwise as they lie
        self._num_above = sum(map(self._is_above, self._buckets))
        seen: set[Tensor | LiveRows] = set()
        for bucket in reversed(self._buckets):
            last = bucket.parameters - seen
            bucket.ends.extend(last)
            seen |= last
        self._gradients, self._buffers = None, []
        on_one_machine = self.num_ranks <= local_ranks_from_environment()
        self._sends_bf16 = self.communication_data_type == torch.bfloat16 and on_one_machine

    def _is_above(self, bucket: Bucket) -> bool:
        return bool(bucket.parameters) and self._seam.weights.issuperset(bucket.parameters)

    def _deal(self, parameter: Tensor | LiveRows, start: int, share: int, offset: int, width: int) -> None:
        """Cut a parameter into pieces of buckets; it begins at ``start`` of a group of ``share`` elements a rank."""
        done = 0
        while done < parameter.numel():
            rank, inside = divmod(start + done, share)
            index, column = divmod(offset + inside, width)
            length = min(parameter.numel() - done, share - inside, width - column)
            bucket = self._buckets[index]
            bucket.pieces.append(_Piece(parameter, done, length, rank * bucket.columns + column))
            done += length

    def _masters(self) -> list[Tensor]:
        return self.single_partition_of_fp32_groups

    def _own_gradients(self) -> list[Tensor]:
        assert self._gradients is not None, "there was no backward pass"
        pairs = zip(self._offsets, self._lengths, strict=False)
        return [self._gradients.narrow(0, offset, length) for offset, length in pairs]

    def _parameters(self) -> list[list[Tensor]]:
        return self.round_robin_bit16_groups

    def _weights(self) -> list[tuple[Tensor, list[Tensor]]]:
        return list(zip(self.bit16_groups_flat, self.parallel_partitioned_bit16_groups, strict=True))

    def backward_prologue(self) -> None:
        """If the reduction begins while this backward goes on: take its memory now.

        The stream that it runs on follows this one only up to the seam. Memory taken later might still be in use here.
        """
        if self._seam.is_cut and self.num_ranks > 1:
            self._take_memory()

    def overlapping_partition_gradients_reduce_epilogue(self) -> None:
        """At the end of each backward pass: take the memory of its reduction, if its beginning has not.

        The engine calls it where DeepSpeed ends its reduction. Ours begins when the ranks know of each other that they
        came so far: :meth:`reduce_micro_batch`.
        """
        self._take_memory()

    def _take_memory(self) -> None:
        device, ranks = self._masters()[0].device, self.num_ranks
        if self._gradients is None:
            self._gradients = torch.empty(self._offsets[-1], device=device)
        if ranks > 1 and not self._buffers:
            size = ranks * max(bucket.columns for bucket in self._buckets)
            self._buffers = [torch.empty(size, device=device) for _ in range(1 + bool(self.overlap_comm))]

    @torch.no_grad()
    def reduce_micro_batch(self) -> None:
        """Add the mean over ranks of a micro-batch's gradients to this rank's slice, and drop them; collective."""
        assert self._gradients is not None
        early = self._seam.take_gradients()
        if self.num_ranks == 1:
            self._take_whole(self._gradients)
            return
        above, others = self._buckets[: self._num_above], self._buckets[self._num_above :]
        if early is None or self._aside is None:
            self._reduce([*above, *others], self._gradients)
        else:
            current = torch.cuda.current_stream()
            with torch.cuda.stream(self._aside):
                self._aside.wait_event(early)
                self._reduce(above, self._gradients)
                self._aside.wait_stream(current)
                self._reduce(others, self._gradients)
            current.wait_stream(self._aside)
        self._holds_gradients, self._buffers = True, []

    def _reduce(self, buckets: list[Bucket], gradients: Tensor) -> None:
        begin = self._exchange if self._sends_bf16 else self._reduce_scatter
        under_way: deque[Callable[[], None]] = deque()
        for number, bucket in enumerate(buckets):
            if len(under_way) == len(self._buffers):
                under_way.popleft()()
            own = gradients.narrow(0, bucket.first, bucket.columns)
            under_way.append(begin(bucket, self._buffers[number % len(self._buffers)], own))
        while under_way:
            under_way.popleft()()

    def _reduce_scatter(self, bucket: Bucket, buffer: Tensor, own: Tensor) -> Callable[[], None]:
        """Send a bucket on its way in fp32. Returns what ends it: for the device, under NCCL."""
        rank = torch_dist.get_rank(self.dp_process_group)
        whole = buffer[: self.num_ranks * bucket.columns]
        _fill(whole, bucket)
        adds = self._holds_gradients
        mean = whole.narrow(0, rank * bucket.columns, bucket.columns) if adds else own
        work = self._mean_to_owners(mean, whole, async_op=len(self._buffers) > 1)

        def end() -> None:
            wait(work)
            if adds:
                own.add_(mean)

        return end

    def _exchange(self, bucket: Bucket, buffer: Tensor, own: Tensor) -> Callable[[], None]:
        """As :meth:`_reduce_scatter`, in bf16: one half of the memory is sent, and the other received."""
        size, adds = self.num_ranks * bucket.columns, self._holds_gradients
        sent, received = buffer[:size].view(torch.bfloat16).view(2, size)
        _fill(sent, bucket)
        work = torch_dist.all_to_all_single(received, sent, group=self.dp_process_group, async_op=True)

        def end() -> None:
            wait(work)
            parts = received.view(self.num_ranks, bucket.columns)
            if adds:
                own.add_(parts.mean(0, dtype=torch.float32))
            else:
                torch.mean(parts, 0, dtype=torch.float32, out=own)

        return end

    def _take_whole(self, gradients: Tensor) -> None:
        """One rank owns everything: each parameter's gradient has its place in the slice."""
        (bucket,) = self._buckets
        parameters, places = [], []
        for piece in bucket.pieces:
            place = gradients.narrow(0, piece.at, piece.length)
            if piece.parameter is not None:
                parameters.append(piece.parameter)
                places.append(place)
            elif not self._holds_gradients:
                place.zero_()
        self._take(parameters, places)

    def finalize_gradient_accumulation_boundary(self) -> None:
        """Nothing: this rank's slice is complete when the last micro-batch is reduced."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """As :class:`FlatAdamW`; gradients are let go of, so that the next forward pass has their memory.

        If some weights are updated meanwhile, the seam keeps them until that pass has come to it.
        """
        super().step(closure)
        self._gradients = None


def _fill(whole: Tensor, bucket: Bucket) -> None:
    """Copy a bucket's gradients, 0 where there are none, and drop those that no later bucket takes."""
    filled, fresh, empty = [], [], []
    for piece, place in zip(bucket.pieces, _unflatten_dense_tensors(whole, bucket.forms), strict=True):
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
    for parameter in bucket.ends:
        parameter.grad = None
