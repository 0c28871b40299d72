"""DeepSpeed's ZeRO-1 for bf16 weights, with fewer passes over memory and less to send.

``BF16_Optimizer`` (deepspeed 0.19.8, ``runtime/bf16_optimizer.py``) adds gradients to an fp32 buffer parameter by
parameter, zeroes that buffer twice a step, takes the norm tensor by tensor, and lets all ranks reduce all of it. The
layout is kept; what is done with it becomes, for each weight that trains: one copy of its bf16 gradient to fp32, and on
the rank that owns it the norm, AdamW and the bf16 copy. 74 bytes a weight become 48 on one rank, and on several each
sends half as much: a reduce-scatter instead of an all-reduce. Nothing here waits for the device: whether the norm is
finite is decided there, so the host is free to queue the next step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def adopt(optimizer: Any) -> None:
    """Turn a fresh ``BF16_Optimizer`` into a :class:`FlatBF16Optimizer`; DeepSpeed offers no way to pass one in."""
    assert not optimizer.immediate_grad_update, "its hooks would accumulate every gradient a second time"
    optimizer.__class__ = FlatBF16Optimizer
    optimizer._holds_gradients = False


class FlatBF16Optimizer(BF16_Optimizer):
    """``BF16_Optimizer`` over its own flat buffers: gradients of a group lie end to end, a slice to every rank."""

    _holds_gradients: bool
    """Whether the fp32 buffers hold this step's gradients, or something to be overwritten."""

    def backward_prologue(self) -> None:
        """Nothing: bf16 gradients are dropped after each micro-batch, so autograd finds none to add to."""

    @torch.no_grad()
    def update_hp_grads(self, clear_lp_grads: bool = False) -> None:
        """After each micro-batch: put its gradients into the fp32 buffers, or add them to what is there."""
        sums, fresh = [], []
        for parameters, buffers in zip(self.bf16_groups, self.fp32_groups_gradients, strict=True):
            for parameter, buffer in zip(parameters, buffers, strict=True):
                if parameter.grad is not None:
                    sums.append(buffer)
                    fresh.append(parameter.grad.view(-1))
                    parameter.grad = None
                elif not self._holds_gradients:
                    buffer.zero_()
        if sums:
            accumulate = torch._foreach_add_ if self._holds_gradients else torch._foreach_copy_
            accumulate(sums, fresh)
        self._holds_gradients = True

    @torch.no_grad()
    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Mean over ranks, each rank's slice to its owner; the engine calls it once a step, before ``step``."""
        num_ranks = torch_dist.get_world_size(self.dp_process_group)
        if num_ranks == 1:
            return
        for own, flat in zip(self.fp32_groups_gradient_flat_partition, self.fp32_groups_gradients_flat, strict=True):
            # In place, as collectives allow: a rank's result lies where its own slice was.
            if flat.is_cuda:
                torch_dist.reduce_scatter_tensor(own, flat, torch_dist.ReduceOp.AVG, group=self.dp_process_group)
            else:  # gloo has no mean
                torch_dist.reduce_scatter_tensor(own, flat, group=self.dp_process_group)
                own.div_(num_ranks)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, AdamW on this rank's masters, the new weights to every rank; no change if the norm is not finite."""
        gradients = self.fp32_groups_gradient_flat_partition
        squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if torch_dist.get_world_size(self.dp_process_group) > 1:
            torch_dist.all_reduce(squares, group=self.dp_process_group)
        norm = squares.sqrt()
        self._holds_gradients = False
        self._global_grad_norm: Any = norm
        # As torch.amp.GradScaler does: fused AdamW divides by the one, and leaves everything alone if the other is 1.
        self.optimizer.grad_scale = (norm / self.clip_grad).clamp(min=1) if self.clip_grad > 0 else None
        self.optimizer.found_inf = norm.isfinite().logical_not().float()
        for master, gradient in zip(self.fp32_groups_flat_partition, gradients, strict=True):
            master.grad = gradient
        self.optimizer.step()
        self.update_lp_params()

    def clear_hp_grads(self) -> None:
        """Nothing to clear: the next step's first micro-batch overwrites the buffers."""
        self._holds_gradients = False
