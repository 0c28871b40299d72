"""A recipe's step on a profile's ranks: which share takes how many clips, and what DeepSpeed is told of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.errors import UsageError
from hebrew_asr.units import count


@dataclass(frozen=True)
class Batching:
    """How the clips of one optimizer step are distributed over ranks and micro-batches."""

    clips_per_step: int
    num_ranks: int
    accumulation: int
    """Micro-batches a rank runs before each optimizer step."""
    max_micro_batch: int
    """Most clips in one micro-batch."""

    def limited_to(self, clips: int) -> Batching:
        """The same effective batch in micro-batches of at most ``clips`` clips."""
        most = min(self.max_micro_batch, clips)
        accumulation = math.ceil(self.clips_per_step / (self.num_ranks * most))
        return Batching(self.clips_per_step, self.num_ranks, accumulation, most)

    def halved(self) -> Batching | None:
        """The same effective batch in micro-batches half as large; None where they hold one clip already."""
        largest = min(self.max_micro_batch, math.ceil(self.clips_per_step / self.num_ranks))
        return self.limited_to(math.ceil(largest / 2)) if largest > 1 else None

    def __str__(self) -> str:
        largest = math.ceil(self.clips_per_step / (self.num_ranks * self.accumulation))
        even = self.clips_per_step % (self.num_ranks * self.accumulation) == 0
        return (
            f"{self.clips_per_step} clips per step = {count(self.num_ranks, 'rank')} × "
            f"{count(self.accumulation, 'micro-batch')} × {'' if even else '≤ '}{largest} clips"
        )


def derive_batching(profile: Profile, recipe: Recipe, num_ranks: int) -> Batching:
    """Derive the accumulation that makes the recipe's clips per step on ``num_ranks`` ranks.

    Raises:
        UsageError: the profile's own figures contradict the recipe's effective batch.
    """
    wanted, micro = recipe.clips_per_step, profile.config["train_micro_batch_size_per_gpu"]
    if num_ranks > wanted:
        raise UsageError(f"{num_ranks} ranks cannot share {wanted} clips per step; start at most {wanted} ranks")
    needed = math.ceil(wanted / (num_ranks * micro))
    given = profile.config.get("gradient_accumulation_steps", needed)
    if (total := profile.config.get("train_batch_size", wanted)) != wanted:
        raise UsageError(
            f"hardware profile {profile.source} says train_batch_size {total}, the recipe's effective batch is "
            f"{wanted} clips; drop the key from the profile or set clips_per_step"
        )
    if given != needed:
        raise UsageError(
            f"hardware profile {profile.source} makes {micro} × {given} × {num_ranks} ranks = "
            f"{micro * given * num_ranks} clips per step, the recipe's effective batch is {wanted}; "
            f"drop gradient_accumulation_steps or set it to {needed}"
        )
    if needed > 1 and not profile.accumulates:
        raise UsageError(
            f"hardware profile {profile.source} makes {needed} micro-batches a step, and under ZeRO stage 0 with bf16 "
            f"their gradients would add up in bf16; use stage 1 or 2, or a train_micro_batch_size_per_gpu of at least "
            f"{math.ceil(wanted / num_ranks)}"
        )
    return Batching(wanted, num_ranks, needed, micro)


def deepspeed_config(profile: Profile, recipe: Recipe, batching: Batching) -> dict[str, Any]:
    """The dict for ``deepspeed.initialize``: the profile's keys and what the recipe owns.

    The trainer runs its own number of backward passes before each step and scales the loss by the global token count,
    so DeepSpeed's batch figures here are bookkeeping: it asserts batch = micro × accumulation × ranks.
    """
    config = json.loads(json.dumps(profile.config))
    config["train_micro_batch_size_per_gpu"] = batching.max_micro_batch
    config["gradient_accumulation_steps"] = batching.accumulation
    config["train_batch_size"] = batching.max_micro_batch * batching.accumulation * batching.num_ranks
    config["managed_gradient_accumulation"] = False
    config["gradient_clipping"] = recipe.optimizer.clip_grad_norm
    config.setdefault("steps_per_print", 10**9)
    # On by default, and it waits for the device twice per step; with it one H100 idled for 7 % of a step of 64 clips.
    config["timers"] = {"throughput": {"enabled": False}}
    # Its linear layers for stage 3 keep no views of whole weights for backward. But they look at numbers of weights,
    # so that no graph serves two layers; ``passes/sharded.py`` can do without.
    config["zero_optimization"].setdefault("memory_efficient_linear", not profile.is_flat)
    if profile.offloads_optimizer:
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config
