"""Gradients of which a rank keeps its own slice alone, at ZeRO-1's speed: for ZeRO-2 and ZeRO-3 in bf16.

DeepSpeed (0.19.8, ``runtime/zero/stage_1_and_2.py`` and ``stage3.py``) reduces parameter by parameter, from hooks that
run while backward does. A compiled backward hands over all gradients at once, so there is nothing for that to run
beside, and it costs copies and launches. The layout of weights and masters is kept. After each micro-batch its
gradients are reduced in buckets (``buckets.py``) of ``reduce_bucket_size`` elements, as in DeepSpeed. With
``overlap_comm`` there are two, and one is filled while the other travels. ``contiguous_gradients``, ``reduce_scatter``
and ``allgather_bucket_size`` change nothing here. Buckets above the seam of a recorded pass (``passes/seam.py``) travel
while backward goes on below it.

With ``communication_data_type`` fp32 a bucket is copied to fp32 and travels by a reduce-scatter. With bf16 it travels
as it is: every rank sends each owner its part, and the owner adds up in fp32. Half as many bytes make the same sums.
Between machines a reduce-scatter sends less all the same, since it adds up on the way: on several, bf16 means fp32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as torch_dist
from torch import Tensor

from hebrew_asr.flat.adamw import FlatAdamW, wait
from hebrew_asr.flat.buckets import Bucket, Group, Layout
from hebrew_asr.launching.place import local_ranks_from_environment


class FlatGradients(FlatAdamW):
    """A ZeRO optimizer with partitioned gradients that are reduced when a micro-batch is over."""

    # What both of DeepSpeed's classes hold.
    gradient_accumulation_steps: int
    reduce_bucket_size: int
    communication_data_type: torch.dtype

    _layout: Layout
    """Of gradients, the same on all ranks."""
    _gradients: Tensor | None
    """(slice,): this rank's share of the gradients' mean over ranks; there from a step's first backward to its end. In
    fp32, or in bf16 as they leave the pass where nothing is added to them and AdamW is compiled: for one rank's only
    micro-batch."""
    _sends_bf16: bool
    """Whether gradients travel as they are, and owners add them up."""
    _num_buffers: int
    """How many buckets there is memory for."""
    _buffers: list[Tensor]
    """fp32 memory of the buckets that are being reduced: to the end of the reduction, and from the end of the backward
    pass, or from its beginning if the pass is cut."""

    def _lay_out(self, groups: list[Group], *, overlaps: bool) -> None:
        """``groups``: the param groups. ``overlaps``: whether a bucket is filled while another one travels."""
        self._layout = Layout.of(groups, self.num_ranks, self.reduce_bucket_size)
        self._gradients, self._num_buffers, self._buffers = None, 1 + overlaps, []
        on_one_machine = self.num_ranks <= local_ranks_from_environment()
        self._sends_bf16 = self.communication_data_type == torch.bfloat16 and on_one_machine

    def _own_gradients(self) -> list[Tensor]:
        assert self._gradients is not None, "there was no backward pass"
        return [self._gradients.narrow(0, *place) for place in self._layout.places]

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
            as_they_are = ranks == self.gradient_accumulation_steps == 1 and self._update is not None
            dtype = torch.bfloat16 if as_they_are else torch.float32
            self._gradients = torch.empty(self._layout.length, dtype=dtype, device=device)
        if ranks > 1 and not self._buffers:
            size = ranks * max(bucket.columns for bucket in self._layout.buckets)
            self._buffers = [torch.empty(size, device=device) for _ in range(self._num_buffers)]

    @torch.no_grad()
    def reduce_micro_batch(self) -> None:
        """Add the mean over ranks of a micro-batch's gradients to this rank's slice, and drop them; collective."""
        assert self._gradients is not None
        early = self._seam.take_gradients()
        if self.num_ranks == 1:
            if self._holds_gradients:  # of an engine that was built for one micro-batch
                self._gradients = self._gradients.float()
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
        whole = buffer[: self.num_ranks * bucket.columns]
        bucket.take_gradients(whole)
        adds = self._holds_gradients
        mean = whole.narrow(0, self.rank * bucket.columns, bucket.columns) if adds else own
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
