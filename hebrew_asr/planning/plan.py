"""What a run will need, before any GPU is rented: memory of every phase, steps, disk.

Peak memory is the most of three moments: forward and backward at their fullest, the end of backward when gradients are
handed over and reduced, and the optimizer's step. Optimizer and buffers follow from DeepSpeed's source
(:mod:`hebrew_asr.planning.zero_memory`), activations from the sizes of the model
(:mod:`hebrew_asr.planning.activations`). No torch is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.checkpoints.disk_space import DiskNeed, disk_need
from hebrew_asr.config.batching import Batching, derive_batching
from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Phase, Recipe
from hebrew_asr.config.schedule import Schedule
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.manifest import has_manifest, open_manifest
from hebrew_asr.data.shapes import Shape
from hebrew_asr.data.steps import Steps
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.sizes import ModelSizes, sizes_at, weight_shapes
from hebrew_asr.planning.activations import Footprint, footprint
from hebrew_asr.planning.bench_corpus import draw_clips
from hebrew_asr.planning.zero_memory import ZeroMemory, sizes_of, width_of, zero_memory
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.text.prompt import parse_target
from hebrew_asr.units import GIB

GUIDE_CLIPS, GUIDE_EVAL_CLIPS = 186_812, 9_832
"""Clips of the recipe's corpora after preparation, to train on and to measure on, as the guide counts them."""
_SAMPLED_CLIPS, _SAMPLED_STEPS = 6_400, 100
"""Of made-up lengths: half of what training looks at, since they are made up, and a plan is to come at once."""

# What only a GPU can tell; the rest of a plan follows from sources and shapes.
_COMPILED_ACTIVATIONS = 0.63
"""Activations of a compiled pass, of those of the eager one: what torch's min-cut partitioner saves of these graphs
when they are traced without a GPU. Four peaks measured on H100s are met within 5 % (``tests/unit/test_plan.py``)."""
_FED_GIB = 0.3
"""Batches and features made ready on a side stream beside the step."""
_OUTSIDE_GIB = 1.2
"""Memory that torch does not count: CUDA context, kernels, cuBLAS and NCCL buffers."""
_FRAGMENTATION = 0.05
"""Share of the peak that the allocator holds besides, in pieces that fit nothing."""
_RECORDED = 0.5
"""Share of the activations that recorded passes hold so, whose shapes share one pool; from 0.2 to 1.0 was measured."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes on each GPU in one phase."""

    phase: str
    trainable: int
    """Weights."""
    zero: ZeroMemory
    activations: int
    """Most that forward and backward hold, for the largest batch; with logits."""
    logits: int
    training: int
    """``torch.cuda.max_memory_allocated`` to expect of a step with the largest batch."""
    peak_at: str
    """When it is reached."""
    evaluation: int
    """ZeRO-3 holds a whole copy of the model while it evaluates."""

    @property
    def peak(self) -> int:
        """``torch.cuda.max_memory_allocated`` to expect over a whole run."""
        return max(self.training, self.evaluation)


@dataclass(frozen=True)
class RunPlan:
    """A run, foretold."""

    recipe: Recipe
    profile: Profile
    batching: Batching
    shapes: list[Shape]
    """Batch shapes, smallest first; the last is the largest to expect in a whole run."""
    phases: list[PhaseMemory]
    num_clips: int
    num_eval_clips: int
    from_data: bool
    """Whether lengths are those of the data folder."""
    steps_per_epoch: int
    total_steps: int
    """Of all epochs, which the learning rates span."""
    last_step: int
    """Where the run ends: the recipe's ``max_steps``, if it has one, may cut it short."""
    phase_starts: list[int]
    disk: DiskNeed
    needed_gib: float
    """Memory that one card must have, with what torch does not count."""

    @property
    def phase_steps(self) -> list[int]:
        """Steps of each phase; 0 where the run ends before it."""
        starts = [min(start, self.last_step) for start in (*self.phase_starts, self.last_step)]
        return [stop - start for start, stop in pairwise(starts)]

    @property
    def memory_gib(self) -> float:
        """Memory that one card has."""
        return self.profile.hardware.memory_gib

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return self.needed_gib <= self.memory_gib


class LengthTokenizer:
    """Stands in for the tokenizer where only lengths matter: as many ids as the real one gives, nearly.

    Qwen3's tokenizer makes 0.343 tokens a character of Hebrew text without vowel points (100 sentences, 71 characters
    each on average), and 9, 6 and 3 tokens of the fixed parts of prompt and target.
    """

    TOKENS_PER_CHARACTER = 0.343

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        if text.startswith("<|im_start|>"):
            count = 9
        elif text.startswith("<|audio_end|>"):
            count = 6
        else:
            count = 3 + math.ceil(self.TOKENS_PER_CHARACTER * len(parse_target(text)[1]))
        return {"input_ids": [0] * count}

    @property
    def backend_tokenizer(self) -> LengthTokenizer:
        """Itself."""
        return self

    def encode_batch_fast(self, texts: list[str], **_: Any) -> list[list[int]]:
        """The ids of each text."""
        return [self(text)["input_ids"] for text in texts]

    def convert_tokens_to_ids(self, _: str) -> int:
        """Any id."""
        return 0


def make_plan(recipe: Recipe, profile: Profile, num_ranks: int) -> RunPlan:
    """Foretell a run on ``num_ranks`` ranks. Neither GPU nor weights nor network are used.

    Args:
        recipe: what is learned.
        profile: the hardware.
        num_ranks: GPUs.

    Raises:
        UsageError: the model is not known, or profile and recipe contradict each other.
        DataError: the data folder has an unreadable manifest.
    """
    batching = derive_batching(profile, recipe, num_ranks)
    sizes = sizes_at(recipe.model.path)
    clips, num_clips, num_eval_clips, from_data = _clips(recipe)
    steps_per_epoch = recipe.steps_per_epoch(num_clips)
    schedule = Schedule(recipe, steps_per_epoch)
    shapes = _shapes(recipe, batching, clips, EncoderGeometry.of(sizes), from_data=from_data)
    phases = [_phase_memory(sizes, recipe, phase, profile, batching, shapes[-1]) for phase in recipe.phases]
    pieces = _RECORDED * max(phase.activations for phase in phases) / GIB if profile.uses_cuda_graphs else 0.0
    peak = pieces + max(phase.peak for phase in phases) / GIB
    return RunPlan(
        recipe=recipe,
        profile=profile,
        batching=batching,
        shapes=shapes,
        phases=phases,
        num_clips=num_clips,
        num_eval_clips=num_eval_clips,
        from_data=from_data,
        steps_per_epoch=steps_per_epoch,
        total_steps=schedule.total_steps,
        last_step=schedule.last_step,
        phase_starts=schedule.phase_starts,
        disk=written(recipe, sizes, width_of(profile)),
        needed_gib=peak * (1 + _FRAGMENTATION) + _OUTSIDE_GIB,
    )


def _clips(recipe: Recipe) -> tuple[Sequence[Clip], int, int, bool]:
    """Clips with the lengths to plan for; how many train and are measured on; whether these are the data folder's."""
    folder = set_folder(recipe.data.folder)
    if has_manifest(folder / "train.jsonl"):
        clips, measured = (
            open_manifest(folder / name, check_audio=False, allow_outside=recipe.data.allow_outside)
            if has_manifest(folder / name)
            else []
            for name in ("train.jsonl", "eval.jsonl")
        )
        return clips, len(clips), len(measured), True
    return draw_clips("train", _SAMPLED_CLIPS), GUIDE_CLIPS, GUIDE_EVAL_CLIPS, False


def _shapes(
    recipe: Recipe, batching: Batching, clips: Sequence[Clip], geometry: EncoderGeometry, *, from_data: bool
) -> list[Shape]:
    """Those that the trainer compiles for these clips. An eager pass meets batches up to the largest of them."""
    folder = Path(recipe.model.path)
    is_local = folder.is_dir() and any(folder.glob("*token*"))
    tokenizer: Any = LengthTokenizer()
    if is_local:
        from hebrew_asr.model.load import load_tokenizer

        tokenizer = load_tokenizer(recipe.model.path)
    if not from_data:  # drawn clips are of no data set
        recipe = replace(recipe, data=replace(recipe.data, weights={}, temperature={}))
    steps = Steps(clips, batching, recipe, tokenizer, geometry)
    sampled = {} if from_data else {"sampled_steps": _SAMPLED_STEPS}
    return steps.fix_shapes(recipe.epochs * steps.steps_per_epoch, **sampled)


def written(recipe: Recipe, model: ModelSizes, width: int) -> DiskNeed:
    """What a run will write; ``width``: bytes of a weight of the final model."""
    shapes = weight_shapes(model)
    in_phases = [sizes_of(shapes, phase_groups(shapes, recipe, phase)) for phase in recipe.phases]
    return disk_need(recipe, (sizes.trainable for sizes in in_phases), width * sum(in_phases[0].parameters))


def _phase_memory(
    model: ModelSizes, recipe: Recipe, phase: Phase, profile: Profile, batching: Batching, shape: Shape
) -> PhaseMemory:
    shapes = weight_shapes(model)
    sizes = sizes_of(shapes, phase_groups(shapes, recipe, phase))
    zero = zero_memory(profile, sizes, batching.num_ranks, batching.accumulation)
    held = footprint(model, trained_weights(model, recipe, phase), shape, width_of(profile))
    moments = _moments(held, zero, profile, batching)
    return PhaseMemory(
        phase=phase.name,
        trainable=sizes.trainable,
        zero=zero,
        activations=_activations(held, profile),
        logits=held.logits,
        training=round(_FED_GIB * GIB) + max(moments.values()),
        peak_at=max(moments, key=moments.__getitem__),
        evaluation=zero.always + width_of(profile) * sum(sizes.parameters) if profile.zero_stage == 3 else 0,
    )


def trained_weights(model: ModelSizes, recipe: Recipe, phase: Phase) -> set[str]:
    """Names of the weights that train in a phase."""
    return {name for group in phase_groups(weight_shapes(model), recipe, phase) for name in group.weights}


def _activations(held: Footprint, profile: Profile) -> int:
    return round(held.peak * (_COMPILED_ACTIVATIONS if profile.compiles else 1.0))


def _moments(held: Footprint, zero: ZeroMemory, profile: Profile, batching: Batching) -> dict[str, int]:
    """Bytes at each moment that can be the fullest."""
    gradients = zero.all_at_once if profile.compiles else zero.one_at_a_time
    # From the second micro-batch on, the partition of gradients is there while forward runs. Where gradients are
    # reduced one by one, an eager backward fills its bucket from the first one on, the logits' own, when the
    # activations are still whole. A recorded pass takes all of that before backward.
    is_cut = profile.cuts_passes and batching.num_ranks > 1
    at_the_end = (profile.compiles or profile.is_flat) and not is_cut
    beside = zero.step_gradients if batching.accumulation > 1 or is_cut else 0
    beside += 0 if at_the_end else zero.step_buckets
    return {
        "forward and backward": zero.always + zero.kept + beside + _activations(held, profile),
        "end of backward": zero.always + gradients + zero.step_gradients + zero.step_buckets,
        "optimizer step": zero.always + zero.step_gradients,
    }


def what_would_fit(plan: RunPlan) -> str | None:
    """The smallest change to the profile after which every phase fits, in words; None if none of these does."""
    ranks = plan.batching.num_ranks
    largest = math.ceil(plan.batching.clips_per_step / (ranks * plan.batching.accumulation))
    zero = {**plan.profile.config.get("zero_optimization", {}), "stage": 2}
    zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    also = ", ZeRO stage 2 and zero_optimization.offload_optimizer.device cpu"
    for keys, words, first in (({}, "", largest // 2), ({"zero_optimization": zero}, also, largest)):
        sizes = [first >> halvings for halvings in range(first.bit_length())]
        if not sizes or not _changed(plan, keys, 1).fits:
            continue
        for micro in sizes:
            changed = _changed(plan, keys, micro)
            if changed.fits:
                return f"train_micro_batch_size_per_gpu {micro}{words} needs {changed.needed_gib:.1f} GiB"
    return None


def _changed(plan: RunPlan, keys: dict[str, Any], micro_batch: int) -> RunPlan:
    config = {**plan.profile.config, **keys, "train_micro_batch_size_per_gpu": micro_batch}
    config.pop("gradient_accumulation_steps", None)
    profile = replace(plan.profile, config=config)
    return make_plan(plan.recipe, profile, plan.batching.num_ranks)
