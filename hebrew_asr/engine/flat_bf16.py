"""DeepSpeed's ZeRO-1 for bf16 weights, with fewer passes over memory and less to send.

``BF16_Optimizer`` (deepspeed 0.19.8, ``runtime/bf16_optimizer.py``) adds gradients to an fp32 buffer parameter by
parameter, zeroes that buffer twice a step, takes the norm tensor by tensor, and lets all ranks reduce all of it. The
layout is kept; what is done with it becomes, for each weight that trains: one copy of its bf16 gradient to fp32, and on
the rank that owns it the norm, and AdamW with the bf16 copy, compiled to one kernel. 74 bytes a weight become 40 on one
rank, and on several each sends half as much: a reduce-scatter instead of an all-reduce. Nothing here waits for the
device: whether the norm is finite is decided there, so the host is free to queue the next step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import all_gather_dp_groups
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from hebrew_asr.errors import on_one_line


def adopt(optimizer: Any, *, compiled: bool) -> None:
    """Turn a fresh ``BF16_Optimizer`` into a :class:`FlatBF16Optimizer`; DeepSpeed offers no way to pass one in.

    ``compiled``: whether AdamW is compiled; otherwise it is torch's fused one, and another pass copies the weights.
    """
    assert not optimizer.immediate_grad_update, "its hooks would accumulate every gradient a second time"
    optimizer.__class__ = FlatBF16Optimizer
    optimizer._holds_gradients = False
    optimizer._update = torch.compile(update, fullgraph=True, dynamic=True) if compiled else None


def update(
    master: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    grad_scale: Tensor,
    found_inf: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW (Loshchilov and Hutter 2019, as ``torch.optim.AdamW``) on a flat group: one kernel, once compiled.

    torch's own, compiled, gives NaN where the rate and a second moment are 0, and knows no ``found_inf``.

    Args:
        master: (weights,) fp32; so are ``gradient``, ``exp_avg`` and ``exp_avg_sq``. All but the gradient change.
        step: scalar, steps taken so far; changes too.
        weights: (weights,) bf16, overwritten.
        learning_rate: scalar on the device, for as a number it would be compiled in.
        grad_scale: scalar that gradients are divided by.
        found_inf: scalar; anything but 0 leaves all as it was.
        betas, eps, weight_decay: of ``torch.optim.AdamW``.
    """
    beta1, beta2 = betas
    scaled, new_step = gradient / grad_scale, step + 1
    new_avg = torch.lerp(exp_avg, scaled, 1 - beta1)
    new_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * scaled.square()
    rate = learning_rate / (1 - beta1**new_step)
    denominator = new_avg_sq.sqrt() / (1 - beta2**new_step).sqrt() + eps
    new_master = master * (1 - learning_rate * weight_decay) - rate * new_avg / denominator
    new = (new_master, new_avg, new_avg_sq, new_step)
    for before, after in zip((master, exp_avg, exp_avg_sq, step), new, strict=True):
        before.copy_(torch.where(found_inf == 0, after, before))
    weights.copy_(master)


class FlatBF16Optimizer(BF16_Optimizer):
    """``BF16_Optimizer`` over its own flat buffers: gradients of a group lie end to end, a slice to every rank."""

    _holds_gradients: bool
    """Whether the fp32 buffers hold this step's gradients, or something to be overwritten."""
    _update: Callable[..., None] | None
    """:func:`update`, compiled."""

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
        # As with torch.amp.GradScaler, AdamW divides by the one, and leaves everything alone if the other is 1.
        grad_scale = (norm / self.clip_grad).clamp(min=1) if self.clip_grad > 0 else torch.ones_like(norm)
        found_inf = norm.isfinite().logical_not().float()
        if self._update is not None:
            try:
                self._step_compiled(self._update, grad_scale, found_inf)
                return
            except TorchDynamoException as error:  # in the first call, before anything changed
                self._update = None
                warnings.warn(
                    f"AdamW could not be compiled and runs as it is: {on_one_line(error)}", RuntimeWarning, stacklevel=2
                )
        self.optimizer.grad_scale, self.optimizer.found_inf = grad_scale, found_inf
        for master, gradient in zip(self.fp32_groups_flat_partition, gradients, strict=True):
            master.grad = gradient
        self.optimizer.step()
        self.update_lp_params()

    def _step_compiled(self, update: Callable[..., None], grad_scale: Tensor, found_inf: Tensor) -> None:
        rank = torch_dist.get_rank(self.dp_process_group)
        masters, gradients = self.fp32_groups_flat_partition, self.fp32_groups_gradient_flat_partition
        groups = zip(self.optimizer.param_groups, masters, gradients, self.bf16_partitioned_groups, strict=True)
        for options, master, gradient, slices in groups:
            state = self.optimizer.state[master]
            update(
                *(master, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"], slices[rank]),
                *(torch.full_like(grad_scale, options["lr"]), grad_scale, found_inf),
                *(options["betas"], options["eps"], options["weight_decay"]),
            )
        all_gather_dp_groups(
            groups_flat=self.bf16_groups_flat,
            partitioned_param_groups=self.bf16_partitioned_groups,
            dp_process_group=self.real_dp_process_group,
            start_alignment_factor=self.nccl_start_alignment_factor,
            allgather_bucket_size=self.allgather_bucket_size,
        )

    def clear_hp_grads(self) -> None:
        """Nothing to clear: the next step's first micro-batch overwrites the buffers."""
        self._holds_gradients = False
