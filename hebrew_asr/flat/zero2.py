"""DeepSpeed's ZeRO-2 for bf16 weights at ZeRO-1's speed: of the fp32 gradients a rank keeps its own slice alone.

``DeepSpeedZeroOptimizer`` (deepspeed 0.19.8, ``runtime/zero/stage_1_and_2.py``) reduces parameter by parameter, from
hooks that run while backward does. A compiled backward hands over all gradients at once, so there is nothing for that
to run beside, and it costs copies and launches. The layout of weights and masters is kept. After each micro-batch its
gradients are reduced in buckets (``buckets.py``) of ``reduce_bucket_size`` elements, as in DeepSpeed. With
``overlap_comm`` there are two, and one is filled while the other travels. ``contiguous_gradients``, ``reduce_scatter``
and ``allgather_bucket_size`` change nothing here. Buckets above the seam of a recorded pass (``model/seam.py``) travel
while backward goes on below it. Of a weight of which most rows stay, the others alone are reduced (``live_rows.py``).

With ``communication_data_type`` fp32 a bucket is copied to fp32 and travels by a reduce-scatter. With bf16 it travels
as it is: every rank sends each owner its part, and the owner adds up in fp32. Half as many bytes make the same sums.
Between machines a reduce-scatter sends less all the same, since it adds up on the way: on several, bf16 means fp32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from hebrew_asr.flat.adamw import FlatAdamW, wait
from hebrew_asr.flat.buckets import Bucket, Group, Layout
from hebrew_asr.flat.live_rows import LiveRows, Source
from hebrew_asr.launching.place import local_ranks_from_environment
from hebrew_asr.model.seam import Seam


class FlatZeRO2(FlatAdamW, DeepSpeedZeroOptimizer):
    """``DeepSpeedZeroOptimizer`` with partitioned gradients that are reduced when a micro-batch is over."""

    _layout: Layout
    """Of gradients, the same on all ranks."""
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
        optimizer._lay_out(kept_rows)

    def _lay_out(self, kept_rows: Mapping[Tensor, Tensor]) -> None:
        groups = []
        placed = zip(self._parameters(), self.round_robin_bit16_offsets, self._masters(), strict=True)
        for index, (parameters, starts, master) in enumerate(placed):
            self._live[index] = rows = self._live_rows(parameters, master.numel(), kept_rows)
            sources: list[Source] = [*parameters] if rows is None else [rows]
            share = master.numel() if rows is None else rows.length
            groups.append(Group(sources, starts, share, self._seam.weights.issuperset(parameters)))
        self._layout = Layout.of(groups, self.num_ranks, self.reduce_bucket_size)
        self._gradients, self._buffers = None, []
        on_one_machine = self.num_ranks <= local_ranks_from_environment()
        self._sends_bf16 = self.communication_data_type == torch.bfloat16 and on_one_machine

    def _live_rows(self, group: list[Tensor], share: int, kept_rows: Mapping[Tensor, Tensor]) -> LiveRows | None:
        if len(group) != 1 or group[0] not in kept_rows:
            return None
        rank = torch_dist.get_rank(self.dp_process_group)
        return LiveRows.of(group[0], kept_rows[group[0]], share, rank, self.num_ranks)

    def _masters(self) -> list[Tensor]:
        return self.single_partition_of_fp32_groups

    def _own_gradients(self) -> list[Tensor]:
        assert self._gradients is not None, "there was no backward pass"
        return [self._gradients.narrow(0, *place) for place in self._layout.places]

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
            self._gradients = torch.empty(self._layout.length, device=device)
        if ranks > 1 and not self._buffers:
            size = ranks * max(bucket.columns for bucket in self._layout.buckets)
            self._buffers = [torch.empty(size, device=device) for _ in range(1 + bool(self.overlap_comm))]

    @torch.no_grad()
    def reduce_micro_batch(self) -> None:
        """Add the mean over ranks of a micro-batch's gradients to this rank's slice, and drop them; collective."""
        assert self._gradients is not None
        early = self._seam.take_gradients()
        if self.num_ranks == 1:
            self._take_whole(self._gradients)
            return
        buckets, num_above = self._layout.buckets, self._layout.num_above
        if early is None or self._aside is None:
            self._reduce(buckets, self._gradients)
        else:
            current = torch.cuda.current_stream()
            with torch.cuda.stream(self._aside):
                self._aside.wait_event(early)
                self._reduce(buckets[:num_above], self._gradients)
                self._aside.wait_stream(current)
                self._reduce(buckets[num_above:], self._gradients)
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
        bucket.take_gradients(whole)
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
        bucket.take_gradients(sent)
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
        sources, places = [], []
        for first, piece in ((one.first, piece) for one in self._layout.buckets for piece in one.pieces):
            place = gradients.narrow(0, first + piece.at, piece.length)
            if piece.source is not None:
                sources.append(piece.source)
                places.append(place)
            elif not self._holds_gradients:
                place.zero_()
        self._take(sources, places)

    def finalize_gradient_accumulation_boundary(self) -> None:
        """Nothing: this rank's slice is complete when the last micro-batch is reduced."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """As :class:`FlatAdamW`; gradients are let go of, so that the next forward pass has their memory.

        If some weights are updated meanwhile, the seam keeps them until that pass has come to it.
        """
        super().step(closure)
        self._gradients = None
