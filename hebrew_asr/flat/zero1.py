"""DeepSpeed's ZeRO-1 for bf16 weights, with fewer passes over memory and less to send.

``BF16_Optimizer`` (deepspeed 0.19.8, ``runtime/bf16_optimizer.py``) adds gradients to an fp32 buffer parameter by
parameter, zeroes that buffer twice per step, and lets all ranks reduce all of it. The layout is kept; what is done with
it becomes, for each weight that trains: one copy of its bf16 gradient to fp32, and AdamW on the rank that owns it. 74
bytes read and written a weight become 40 on one rank, and on several each sends half as much: a reduce-scatter instead
of an all-reduce.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from hebrew_asr.flat.adamw import FlatAdamW
from hebrew_asr.passes.seam import Seam


class FlatZeRO1(FlatAdamW, BF16_Optimizer):
    """``BF16_Optimizer`` over its own flat buffers: gradients of a group lie end to end, a slice to every rank."""

    @staticmethod
    def convert(optimizer: Any, *, compiled: bool, seam: Seam) -> None:
        """Turn a fresh ``BF16_Optimizer`` into this: DeepSpeed offers no way to pass one in."""
        assert not optimizer.immediate_grad_update, "its hooks would accumulate every gradient a second time"
        optimizer.__class__ = FlatZeRO1
        optimizer._convert(compiled=compiled, seam=seam)

    def _masters(self) -> list[Tensor]:
        return self.fp32_groups_flat_partition

    def _own_gradients(self) -> list[Tensor]:
        return self.fp32_groups_gradient_flat_partition

    def _parameters(self) -> list[list[Tensor]]:
        return self.bf16_groups

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        groups = zip(self.bf16_groups_flat, self.bf16_partitioned_groups, strict=True)
        return [(flat, slices[self.rank]) for flat, slices in groups]

    def backward_prologue(self) -> None:
        """Nothing: bf16 gradients are dropped after each micro-batch, so autograd finds none to add to."""

    @torch.no_grad()
    def update_hp_grads(self, clear_lp_grads: bool = False) -> None:
        """After each micro-batch: put its gradients into the fp32 buffers, or add them to what is there."""
        parameters = [parameter for group in self._parameters() for parameter in group]
        self._take(parameters, [buffer for group in self.fp32_groups_gradients for buffer in group])

    @torch.no_grad()
    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Mean over ranks, each rank's slice to its owner; the engine calls it once per step, before ``step``."""
        if self.num_ranks == 1:
            return
        for own, flat in zip(self.fp32_groups_gradient_flat_partition, self.fp32_groups_gradients_flat, strict=True):
            self._mean_to_owners(own, flat)  # in place, as collectives allow: ``own`` lies where this rank's part is

    def clear_hp_grads(self) -> None:
        """Nothing to clear: the next step's first micro-batch overwrites the buffers."""
        self._holds_gradients = False
