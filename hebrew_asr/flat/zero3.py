"""DeepSpeed's ZeRO-3 for bf16 weights, gathered part by part of a pass (``passes/sharded.py``).

``DeepSpeedZeroOptimizer_Stage3`` (deepspeed 0.19.8, ``runtime/zero/stage3.py``) cuts every weight into equal shares,
one a rank, and lays a rank's shares of a param group end to end, with their masters. That stays. Its hooks on modules
and weights go: they take the host longer than the device needs for a step. Weights are gathered by the pass, and
gradients are reduced when a micro-batch is over (``gradients.py``); until then all of them are there in bf16. A part's
weights are whole for as long as it runs, and the next one's are on their way; small parts that follow each other are
one, as far as ``stage3_prefetch_bucket_size`` elements hold them. Up to ``stage3_max_live_parameters`` elements stay
whole from forward to backward. What ``stage3_max_reuse_distance``, ``stage3_param_persistence_threshold`` and
``sub_group_size`` say changes nothing. A key that asks for more, such as ``offload_param``, leaves DeepSpeed's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.distributed as torch_dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from hebrew_asr.flat.buckets import Group, Run
from hebrew_asr.flat.gradients import FlatGradients
from hebrew_asr.passes.packed import PackedASR
from hebrew_asr.passes.sharded import ShardedWeights

KEYS = {"stage3_param_persistence_threshold": 0, "sub_group_size": 1 << 60}
"""Of DeepSpeed's section, for this: no weight stays whole, and a param group has one flat buffer."""


class FlatZeRO3(FlatGradients, DeepSpeedZeroOptimizer_Stage3):
    """``DeepSpeedZeroOptimizer_Stage3`` without hooks: the pass gathers weights, and has gradients when it is over."""

    @staticmethod
    def convert(
        optimizer: Any, module: PackedASR, *, overlaps: bool, most_together: int, most_kept: int, compiled: bool
    ) -> None:
        """Turn a fresh ``DeepSpeedZeroOptimizer_Stage3``, built with ``KEYS``, into this.

        Args:
            optimizer: the fresh one.
            module: whose passes gather the weights from now on.
            overlaps: DeepSpeed's ``overlap_comm``.
            most_together: its ``stage3_prefetch_bucket_size``.
            most_kept: its ``stage3_max_live_parameters``.
            compiled: whether AdamW is.
        """
        optimizer.parameter_offload.destroy()
        for hook in (*optimizer._grad_acc_hooks, *optimizer._leaf_module_hooks):
            hook.remove()
        optimizer._grad_acc_hooks.clear()
        optimizer._leaf_module_hooks.clear()
        # Its memory for gradients, which would stay: a bucket, and fp32 of this rank's slice.
        optimizer.ipg_buckets.clear()
        optimizer.grad_partitions_flat_buffer = None
        optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.clear()
        weights: list[Any] = list(module.parameters())
        group = optimizer.dp_process_group
        module.sharded = ShardedWeights(
            {weight: weight.ds_tensor for weight in weights},
            {weight: weight.ds_shape for weight in weights},
            torch_dist.get_world_size(group),
            most_together,
            most_kept,
            partial(torch_dist.all_gather_into_tensor, group=group, async_op=True),
            _mark,
        )
        optimizer.__class__ = FlatZeRO3
        optimizer._convert(compiled=compiled, seam=module.seam)
        for options, master in zip(optimizer.optimizer.param_groups, optimizer._masters(), strict=True):
            options["params"] = [master]
        optimizer._lay_out([optimizer._group(weights) for weights in optimizer._parameters()], overlaps=overlaps)

    def _group(self, weights: list[Any]) -> Group:
        shares = [weight.ds_tensor.ds_numel for weight in weights]
        runs, offset = [], 0
        for weight, share in zip(weights, shares, strict=True):
            for rank in range(self.num_ranks):
                length = max(0, min(share, weight.numel() - rank * share))
                runs.append(Run(weight, rank * share, length, rank * sum(shares) + offset))
            offset += share
        return Group(runs, sum(shares), is_above=False)

    def _masters(self) -> list[Tensor]:
        return self.fp32_partitioned_groups_flat

    def _parameters(self) -> list[list[Tensor]]:
        return self.fp16_groups

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        return [(own, own) for own in self.fp16_partitioned_groups_flat]

    def overlapping_partition_gradients_reduce_epilogue(self) -> None:
        """At the end of each backward pass: no weight is needed whole any more."""
        self.module.sharded.drop()
        super().overlapping_partition_gradients_reduce_epilogue()


def _mark(weight: Any, is_whole: bool) -> None:
    """DeepSpeed asks each weight, and gathers what is not there, when a module reads it."""
    if hasattr(weight, "ds_status"):
        weight.ds_status = ZeroParamStatus.AVAILABLE if is_whole else ZeroParamStatus.NOT_AVAILABLE
