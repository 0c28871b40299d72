"""All use of DeepSpeed's private attributes but for room ``flat``: where ZeRO keeps its fp32 masters and Adam moments.

Read from the source of deepspeed 0.19.8 (the pinned release); ``tests/integration/test_engine.py`` notices a change.
ZeRO flattens each param group and gives every rank a slice of it, so a parameter's master may be cut across ranks. A
``Partition`` is one such flat slice and its ``Fragment``s say which elements of which parameters it holds: with that,
state can be carried over a rebuilt engine, written, and read back on another rank count or ZeRO stage.
"""

from __future__ import annotations

import contextlib
import io
import weakref
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from hebrew_asr.config.profiles import Profile
from hebrew_asr.engine import garbage
from hebrew_asr.flat import zero3 as flat_zero3
from hebrew_asr.flat.gradients import FlatGradients
from hebrew_asr.flat.zero1 import FlatZeRO1
from hebrew_asr.flat.zero2 import FlatZeRO2
from hebrew_asr.flat.zero3 import FlatZeRO3
from hebrew_asr.model.phases import ParameterGroup
from hebrew_asr.passes.layered import LayeredASR
from hebrew_asr.passes.packed import PackedASR


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements inside a flat partition."""

    parameter: str
    start: int
    """First element within the flattened parameter."""
    length: int
    offset: int
    """First element within the partition."""


@dataclass
class Partition:
    """One flat fp32 master tensor that AdamW steps on, on this rank."""

    group: str
    master: torch.Tensor
    fragments: list[Fragment]


def build(
    module: PackedASR, groups: list[ParameterGroup], config: dict[str, Any], optimizer: Any, profile: Profile
) -> Any:
    """``deepspeed.initialize`` with one named torch param group for each of ``groups``.

    Args:
        module: whole model; parameters in no group are frozen. Flat stages heed its seam, ZeRO-2 its kept rows too.
        groups: from ``model.phases.set_phase``.
        config: the DeepSpeed dict of ``batching.deepspeed_config``.
        optimizer: the recipe's Optimizer section.
        profile: says whether the optimizer is ours, and compiled.
    """
    torch_groups = [
        {
            "params": list(group.parameters.values()),
            "name": group.name,
            "weight_decay": optimizer.weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    # A client optimizer: AdamW is torch's own, and nothing is compiled on the node.
    options = {"lr": 0.0, "betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.eps, "fused": True}
    if config["zero_optimization"]["stage"] == 0 and not config.get("bf16", {}).get("enabled"):
        adamw = _WholeAdamW(torch_groups, clip_grad_norm=config["gradient_clipping"], **options)
        config = {**config, "gradient_clipping": 0.0}
    else:
        adamw = torch.optim.AdamW(torch_groups, **options)
    for layer in module.leaves if isinstance(module, LayeredASR) else ():
        set_z3_leaf_module(layer, True)
    flat, compiled = profile.is_flat, profile.compiles
    if flat and config["zero_optimization"]["stage"] == 3:
        config = {**config, "zero_optimization": {**config["zero_optimization"], **flat_zero3.KEYS}}
    with contextlib.redirect_stdout(io.StringIO()):  # stage 1 prints the memory in use around every group
        engine = deepspeed.initialize(model=module, optimizer=adamw, config=config)[0]
    zero = engine.optimizer
    if type(zero) is BF16_Optimizer:
        FlatZeRO1.convert(zero, compiled=compiled, seam=module.seam)
    elif flat and type(zero) is DeepSpeedZeroOptimizer:
        FlatZeRO2.convert(zero, compiled=compiled, seam=module.seam, kept_rows=module.kept_rows)
    elif flat and isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        FlatZeRO3.convert(
            zero,
            module,
            overlaps=bool(engine.zero_overlap_comm()),
            most_together=engine.zero_prefetch_bucket_size(),
            most_kept=engine.zero_max_live_parameters(),
            compiled=compiled,
        )
    elif isinstance(zero, FP16_UnfusedOptimizer):
        # It takes a step without gradients while it is built: at a rate of 0 that moves nothing, but it counts.
        inner_optimizer(engine).state.clear()
    return engine


class _WholeAdamW(torch.optim.AdamW):
    """AdamW on whole fp32 weights, which DeepSpeed steps as it is at stage 0: without a norm, and with NaN as well.

    As at the other stages, a step clips, leaves all as it was where the norm is not finite, and gives that norm.
    """

    def __init__(self, groups: list[dict[str, Any]], *, clip_grad_norm: float, **options: Any):
        super().__init__(groups, **options)
        self._clip_grad_norm = clip_grad_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; nothing waits for the device."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        # DeepSpeed's engine looks for the first attribute, torch's fused AdamW for the second: 1 leaves all as it was.
        self._global_grad_norm = nn.utils.clip_grad_norm_(weights, self._clip_grad_norm)
        self.found_inf = self._global_grad_norm.isfinite().logical_not().float()
        super().step()


def has_local_backward(engine: Any) -> bool:
    """Whether a backward pass of ``engine`` has no collectives, so that it ends on a rank whatever befalls another."""
    return isinstance(engine.optimizer, FlatZeRO2) or engine.zero_optimization_stage() < 2


def reduce_micro_batch(engine: Any) -> None:
    """After a backward pass that has gone well on every rank: what is left to do with its gradients; collective."""
    if isinstance(engine.optimizer, FlatGradients):
        engine.optimizer.reduce_micro_batch()


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch AdamW inside ZeRO's optimizer."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def partitions(engine: Any, asr: nn.Module) -> list[Partition]:
    """This rank's master partitions, in a stable order, with the fragments they hold: what the optimizer really has.

    ``asr``: whose parameters the engine trains; it names them.
    """
    names = {id(parameter): name for name, parameter in asr.named_parameters()}
    zero, options = engine.optimizer, engine.optimizer.param_groups
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        return _stage3(zero, names)
    groups = [group["name"] for group in options]
    if isinstance(zero, DeepSpeedZeroOptimizer):  # stages 1 and 2
        placed = map(zip, zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets)
        layout = list(zip(zero.single_partition_of_fp32_groups, map(list, placed), strict=True))
        return _sliced(layout, groups, names)
    if isinstance(zero, BF16_Optimizer):  # stage 1, bf16 weights with fp32 accumulation
        layout = [
            (master, _consecutive(params))
            for master, params in zip(zero.fp32_groups_flat_partition, zero.bf16_groups, strict=True)
        ]
        return _sliced(layout, groups, names)
    # Stage 0: whole parameters, in bf16 with an fp32 master for each.
    masters = [group["params"] for group in options]
    weights = zero.fp16_groups if isinstance(zero, FP16_UnfusedOptimizer) else masters
    return [
        Partition(group, master, [Fragment(names[id(weight)], 0, weight.numel(), 0)])
        for group, of_masters, of_weights in zip(groups, masters, weights, strict=True)
        for master, weight in zip(of_masters, of_weights, strict=True)
    ]


def _consecutive(params: list[nn.Parameter]) -> list[tuple[nn.Parameter, int]]:
    offset, placed = 0, []
    for parameter in params:
        placed.append((parameter, offset))
        offset += parameter.numel()
    return placed


def _sliced(layout: list[Any], groups: list[str], names: dict[int, str]) -> list[Partition]:
    """Stages 1 and 2: every group is one flat buffer, cut into equal slices, one per rank."""
    rank = torch_dist.get_rank()
    found = []
    for group, (master, placed) in zip(groups, layout, strict=True):
        low, high = rank * master.numel(), (rank + 1) * master.numel()
        fragments = []
        for parameter, offset in placed:
            first, last = max(low, offset), min(high, offset + parameter.numel())
            if first < last:
                fragments.append(Fragment(names[id(parameter)], first - offset, last - first, first - low))
        found.append(Partition(group, master, fragments))
    return found


def _stage3(zero: Any, names: dict[int, str]) -> list[Partition]:
    """Stage 3: every parameter is cut into equal slices; a sub-group lays this rank's slices end to end."""
    rank = torch_dist.get_rank()
    found = []
    for index, (master, sub_group) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)):
        fragments, offset = [], 0
        for parameter in sub_group:
            share = parameter.ds_tensor.ds_numel
            length = max(0, min(share, parameter.ds_numel - rank * share))
            if length:
                fragments.append(Fragment(names[id(parameter)], rank * share, length, offset))
            offset += share
        group = zero.param_groups[zero.sub_group_to_group_id[index]]["name"]
        found.append(Partition(group, master, fragments))
    return found


def adam_state(engine: Any, partition: Partition) -> dict[str, torch.Tensor]:
    """AdamW's state of a partition (``exp_avg``, ``exp_avg_sq``, ``step``), made as step 0 if it is still lazy.

    Zeros are what AdamW's own first step starts from, so making them early changes nothing.
    """
    state = inner_optimizer(engine).state[partition.master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=partition.master.device)
        state["exp_avg"] = torch.zeros_like(partition.master)
        state["exp_avg_sq"] = torch.zeros_like(partition.master)
    return state


def options_of(engine: Any, partition: Partition) -> dict[str, Any]:
    """AdamW's ``lr``, ``betas``, ``eps`` and ``weight_decay`` of a partition."""
    return next(group for group in engine.optimizer.param_groups if group["name"] == partition.group)


def set_learning_rates(engine: Any, rates: dict[str, float]) -> None:
    """Give every param group (by name) its learning rate for the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rates[group["name"]]


def release(engine: Any) -> None:
    """Take an engine apart so that nothing of it lives on.

    ``engine.destroy()`` alone leaves two forward hooks on the module, whose closures own the old masters and moments,
    and a late ``__del__`` would wipe the next engine's parameter mapping. So every edge is cut here, and checked.
    """
    module = engine.module
    alive = [weakref.ref(engine), weakref.ref(engine.optimizer)]
    engine.destroy()
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        if hook is not None:
            hook.remove()
    engine.module_forward_pre_hook = engine.module_forward_post_hook = None
    if hasattr(engine.optimizer, "unregister_grad_acc_post_hooks"):
        engine.optimizer.unregister_grad_acc_post_hooks()
    for parameter in module.parameters():
        parameter.grad = None
        for attribute in _PARAMETER_MARKS:
            parameter.__dict__.pop(attribute, None)
    engine.optimizer = engine.basic_optimizer = engine.client_optimizer = engine.lr_scheduler = None
    engine._modules.clear()
    engine.__dict__["module"] = None
    del engine
    garbage.take_back()
    # The caller still holds its own reference to the engine; the optimizer must be gone already.
    assert alive[1]() is None, "the old ZeRO optimizer is still referenced; its masters and moments would leak"


_PARAMETER_MARKS = (
    "_hp_mapping",
    "_dp_group",
    "_zero_optimizer",
    "_z3_optimizer",
    "get_full_hp_param",
    "get_full_hp_grad",
    "set_full_hp_param",
    "set_full_hp_grad",
    "load_hp_checkpoint_state",
    "_index_in_param_group",
    "grad_accum",
    "param_idx_in_group",
)
