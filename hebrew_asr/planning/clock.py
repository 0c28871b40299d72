"""How long a run takes and what it costs, from speeds that were measured (``speeds.json``).

A step's time is measured for a few numbers of clips per GPU. Between these it is interpolated: it falls much more
slowly than the clips, since launching, weights and communication cost the same for few as for many. Another card takes
as much longer as its data sheet's dense bf16 rate is lower, which is too long where steps are small. Another model, or
other weights that train, take as much longer or shorter as they need operations. What was not measured as it stands is
called scaled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise

from pydantic import TypeAdapter

from hebrew_asr.config.profiles import Batching, Profile
from hebrew_asr.config.recipe import Recipe, load_recipe
from hebrew_asr.data.shapes import Shape
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.sizes import PUBLISHED, ModelSizes, weight_shapes
from hebrew_asr.planning.flops import Work, pass_flops
from hebrew_asr.units import GIB

_TIMED_RECIPE = "round2"
"""Whose phases were timed, on the model of 1.7 billion weights."""
_SAME_WORK = 0.01
_REFERENCE_CARD = "H100"
"""On which, or the H200 with the same data sheet rate, steps were measured."""


@dataclass(frozen=True)
class TimedStep:
    """A step of one micro-batch, as it was timed."""

    card: str
    num_gpus: int
    clips_per_gpu: int
    ms: dict[str, float]
    """By phase."""


@dataclass(frozen=True)
class Speeds:
    """What was measured: the fields of ``speeds.json``."""

    steps: list[TimedStep]
    """In ascending order of clips per GPU."""
    zero3_micro_batch_ms: float
    """Of up to 32 clips, on two H100s: DeepSpeed's bookkeeping on the host takes most of it, on any card."""
    zero3_compile_s_per_phase: float
    compile_s_per_phase: float
    startup_s: float
    decoding_s_per_batch: float
    recording_s_per_shape: float
    checkpoint_s: float
    written_gib_per_s: float
    bf16_tflops: dict[str, float]
    """Dense, by card, as data sheets have it."""


@cache
def measured_speeds() -> Speeds:
    """The shipped measurements."""
    text = resources.files("hebrew_asr.planning").joinpath("speeds.json").read_text(encoding="utf-8")
    values = {key: value for key, value in json.loads(text).items() if not key.startswith("_")}
    return TypeAdapter(Speeds).validate_python(values)


@dataclass(frozen=True)
class Clock:
    """Seconds of a whole run, begun once and never stopped."""

    steps_s: float
    compile_s: float
    """Of all phases, with nothing in the cache."""
    recording_s: float
    """CUDA graphs, of every shape in every phase; at each start anew."""
    evaluation_s: float
    """The sample every so many steps, and the whole split after each epoch."""
    checkpoint_s: float
    """Copies of the state, and what training waits for: a checkpoint at a change of phase, the last, the model."""
    startup_s: float
    measured: bool
    """Whether steps were timed on this card, in this number and with as many clips each; otherwise they are scaled."""
    source: str
    """What the steps' time comes from."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.steps_s + self.compile_s + self.recording_s + self.evaluation_s + self.checkpoint_s + self.startup_s


def run_clock(
    recipe: Recipe,
    profile: Profile,
    batching: Batching,
    steps_per_epoch: int,
    eval_clips: int,
    clips_per_s: float | None = None,
    work: Sequence[float] | None = None,
    num_shapes: int = 0,
    checkpoint_bytes: int = 0,
    model_bytes: int = 0,
) -> Clock | None:
    """Foretell the time of a run.

    Args:
        recipe: says phases, evaluations and checkpoints.
        profile: says the card and what is compiled.
        batching: of the run's number of GPUs.
        steps_per_epoch: optimizer steps.
        eval_clips: of the whole evaluation split.
        clips_per_s: of all GPUs together, where it is known better than here.
        work: :func:`relative_work` of each phase; 1 unless given.
        num_shapes: of batches, each of which is recorded once per phase where the profile has CUDA graphs.
        checkpoint_bytes: of the last checkpoint, of which training waits to be written, as at a change of phase.
        model_bytes: of the final model.

    Returns:
        None where nothing comparable was measured: CPUs, an optimizer on the host, other cards.
    """
    known = measured_speeds()
    card = profile.hardware.card
    if clips_per_s is not None:
        per_step = [recipe.clips_per_step / clips_per_s] * len(recipe.phases)
        measured, source = False, f"{clips_per_s:g} clips/s, as given"
    elif card is None or card not in known.bf16_tflops or profile.offloads_optimizer:
        return None
    else:
        timed = [_step_ms(known, profile, batching, phase.name, card) for phase in recipe.phases]
        work = work or [1.0] * len(timed)
        per_step = [ms / 1e3 * factor for (ms, _, _), factor in zip(timed, work, strict=True)]
        measured, source = all(exact for _, exact, _ in timed), timed[0][2]
        if any(abs(factor - 1) > _SAME_WORK for factor in work):
            measured, factors = False, ", ".join(f"{factor:.2f}" for factor in work)
            source += f", by phase {factors} times as long as {_TIMED_RECIPE}'s, as operations have it"
    steps = [phase.epochs * steps_per_epoch for phase in recipe.phases]
    total = sum(steps)
    awaited = len(recipe.phases) if profile.compiles else 1
    return Clock(
        steps_s=sum(count * each for count, each in zip(steps, per_step, strict=True)),
        compile_s=_compile_s(known, profile) * len(recipe.phases),
        recording_s=known.recording_s_per_shape * num_shapes * len(recipe.phases) * profile.uses_cuda_graphs,
        evaluation_s=known.decoding_s_per_batch * _decoded_batches(recipe, batching, total, eval_clips),
        checkpoint_s=known.checkpoint_s * math.ceil(total / recipe.checkpoints.every_steps)
        + (awaited * checkpoint_bytes + model_bytes) / GIB / known.written_gib_per_s,
        startup_s=known.startup_s,
        measured=measured,
        source=source,
    )


def relative_work(model: ModelSizes, trained: Collection[str], phase: str, shape: Shape) -> float:
    """Operations of a step, of those of the step that was timed: in round2's phase of that name, else in its last."""
    recipe = load_recipe(_TIMED_RECIPE)
    of_name = next((timed for timed in recipe.phases if timed.name == phase), recipe.phases[-1])
    timed_model, work = PUBLISHED[recipe.model.path], Work.of_shape(shape)
    groups = phase_groups(weight_shapes(timed_model), recipe, of_name)
    timed_weights = {name for group in groups for name in group.weights}
    return pass_flops(model, trained, work) / pass_flops(timed_model, timed_weights, work)


def _compile_s(known: Speeds, profile: Profile) -> float:
    if not profile.hardware.compiles:
        return 0.0
    return known.compile_s_per_phase if profile.compiles else known.zero3_compile_s_per_phase


def _decoded_batches(recipe: Recipe, batching: Batching, total_steps: int, eval_clips: int) -> int:
    """Batches that the busiest rank decodes. Each takes as long as its longest clip, however full it is."""
    settings = recipe.evaluation

    def batches(clips: int) -> int:
        return math.ceil(math.ceil(clips / batching.num_ranks) / settings.batch_clips)

    samples = math.ceil(total_steps / settings.every_steps) * batches(settings.sample_clips)
    times = recipe.epochs + 2 * settings.choose_final  # which at the end compares the last model with two others
    return samples + (times * batches(eval_clips) if settings.full_each_epoch else 0)


def _step_ms(known: Speeds, profile: Profile, batching: Batching, phase: str, card: str) -> tuple[float, bool, str]:
    """Milliseconds of a step, whether just this was measured, and where it comes from."""
    slower = known.bf16_tflops[_REFERENCE_CARD] / known.bf16_tflops[card]
    clips = math.ceil(batching.clips_per_step / (batching.num_ranks * batching.accumulation))
    if profile.zero_stage == 3:
        ms = known.zero3_micro_batch_ms * batching.accumulation
        return ms, False, "micro-batches of 32 clips under ZeRO-3 on two H100s, which the host's work bounds"
    for entry in known.steps if batching.accumulation == 1 else []:
        timed = (entry.card, entry.num_gpus, entry.clips_per_gpu) == (card, batching.num_ranks, clips)
        if timed and phase in entry.ms:
            return entry.ms[phase], True, f"{batching.num_ranks} × {card}, {clips} clips per GPU"
    points = [(entry.clips_per_gpu, entry.ms.get(phase, max(entry.ms.values()))) for entry in known.steps]
    ms = _interpolated(clips, points) * batching.accumulation * slower
    return ms, False, _scaled("steps of 8 to 64 clips per GPU on H100s and H200s", slower)


def _scaled(source: str, slower: float) -> str:
    return f"{source}, taken {slower:.1f} times as long, as data sheets have it" if slower > 1 else source


def _interpolated(clips: int, points: Sequence[tuple[int, float]]) -> float:
    """Linear between points in ascending order; beyond the last in proportion, below the first as the first."""
    if clips <= points[0][0]:
        return points[0][1]
    for (low, low_ms), (high, high_ms) in pairwise(points):
        if clips <= high:
            return low_ms + (high_ms - low_ms) * (clips - low) / (high - low)
    return points[-1][1] * clips / points[-1][0]
