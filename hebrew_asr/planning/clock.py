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
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from pydantic import TypeAdapter

from hebrew_asr.config.batching import Batching
from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Phase, load_recipe
from hebrew_asr.model.sizes import PUBLISHED, sizes_at
from hebrew_asr.planning.flops import Work, pass_flops
from hebrew_asr.planning.plan import RunPlan, trained_weights
from hebrew_asr.units import GIB
from hebrew_asr.watching.progress import Course

PREPARE_CPU_S_PER_CLIP = 7.1e-3
"""Of one core, for mp3 of 44.1 kHz and 4.6 s on average; measured on busy cores, so an upper bound."""
_TIMED_RECIPE = "round2"
"""The recipe whose phases were timed, on the model of 1.7 billion weights."""
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
    zero_3: bool = False
    """Under ZeRO-3; stages 1 and 2 are counted as one."""


@dataclass(frozen=True)
class Speeds:
    """What was measured: the fields of ``speeds.json``."""

    steps: list[TimedStep]
    """In ascending order of clips per GPU."""
    compile_s_per_phase: float
    startup_s: float
    evaluation_s: float
    """What each evaluation takes beyond its clips, when a card decodes as many together as it holds."""
    evaluation_s_per_clip: float
    """Of one rank's share, on one H200; other cards are counted alike."""
    decoding_s_per_batch: float
    """Where the recipe says how many clips are decoded together; of 32 of them."""
    rehearsal_s: float
    """Engines, steps and a batch of an evaluation, beside compiling."""
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
    """Seconds that all phases compile, with nothing in the cache."""
    rehearsal_s: float
    """What trying the phases takes beyond compiling them."""
    recording_s: float
    """CUDA graphs, of every shape in every phase; at each start anew."""
    evaluation_s: float
    """The sample at the start and every so many steps, the whole split after each epoch and to choose the model."""
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
        parts = (self.steps_s, self.compile_s, self.rehearsal_s, self.recording_s, self.evaluation_s)
        return sum(parts) + self.checkpoint_s + self.startup_s


def run_clock(plan: RunPlan, clips_per_s: float | None = None) -> Clock | None:
    """Foretell the time of a run.

    Args:
        plan: of the run.
        clips_per_s: of all GPUs together, where it is known better than here.

    Returns:
        None where nothing comparable was measured: CPUs, an optimizer on the host, other cards, ZeRO-3 whose pass is
        not recorded.
    """
    recipe, profile, batching, known = plan.recipe, plan.profile, plan.batching, measured_speeds()
    card = profile.hardware.card
    if clips_per_s is not None:
        per_step = [recipe.clips_per_step / clips_per_s] * len(recipe.phases)
        measured, source = False, f"{clips_per_s:g} clips/s, as given"
    elif card is None or card not in known.bf16_tflops or not _was_timed(profile):
        return None
    else:
        timed = [_step_ms(known, profile, batching, phase.name, card) for phase in recipe.phases]
        work = [_relative_work(plan, phase) for phase in recipe.phases]
        per_step = [ms / 1e3 * factor for (ms, _, _), factor in zip(timed, work, strict=True)]
        measured, source = all(exact for _, exact, _ in timed), timed[0][2]
        if any(abs(factor - 1) > _SAME_WORK for factor in work):
            measured, factors = False, ", ".join(f"{factor:.2f}" for factor in work)
            source += f", by phase {factors} times as long as {_TIMED_RECIPE}'s, as operations have it"
    phases = sum(steps > 0 for steps in plan.phase_steps)
    is_rehearsed = profile.rehearses(recipe)
    awaited = phases if profile.compiles and not is_rehearsed else 1  # one is waited for before a step is compiled
    awaited_gib = (awaited * plan.disk.checkpoint + plan.disk.model) / GIB
    recorded = len(plan.shapes) * phases * profile.uses_cuda_graphs
    return Clock(
        steps_s=sum(count * each for count, each in zip(plan.phase_steps, per_step, strict=True)),
        compile_s=_compile_s(known, profile) * phases,
        rehearsal_s=known.rehearsal_s * is_rehearsed,
        recording_s=known.recording_s_per_shape * recorded,
        evaluation_s=_evaluation_s(known, plan),
        checkpoint_s=known.checkpoint_s * math.ceil(plan.last_step / recipe.checkpoints.every_steps)
        + awaited_gib / known.written_gib_per_s,
        startup_s=known.startup_s,
        measured=measured,
        source=source,
    )


def _was_timed(profile: Profile) -> bool:
    """Whether steps of this kind were: none with an optimizer on the host, and under ZeRO-3 recorded ones alone."""
    return not profile.offloads_optimizer and (profile.zero_stage < 3 or profile.uses_cuda_graphs)


def _relative_work(plan: RunPlan, phase: Phase) -> float:
    """Operations of a step, of those of the step that was timed: in round2's phase of that name, else in its last."""
    timed = load_recipe(_TIMED_RECIPE)
    timed_phase = next((one for one in timed.phases if one.name == phase.name), timed.phases[-1])
    model, timed_model, work = (
        sizes_at(plan.recipe.model.path),
        PUBLISHED[timed.model.path],
        Work.of_shape(plan.shapes[-1]),
    )
    needed = pass_flops(model, trained_weights(model, plan.recipe, phase), work)
    return needed / pass_flops(timed_model, trained_weights(timed_model, timed, timed_phase), work)


def _compile_s(known: Speeds, profile: Profile) -> float:
    return known.compile_s_per_phase if profile.compiles else 0.0


def _evaluation_s(known: Speeds, plan: RunPlan) -> float:
    """Of all evaluations, as the busiest rank takes them."""
    settings = plan.recipe.evaluation

    def lasts_s(clips: int) -> float:
        own = math.ceil(clips / plan.batching.num_ranks)
        if settings.batch_clips is None:
            return (known.evaluation_s + known.evaluation_s_per_clip * own) * (own > 0)
        return known.decoding_s_per_batch * math.ceil(own / settings.batch_clips)

    course = Course(
        recipe=plan.recipe,
        steps_per_epoch=plan.steps_per_epoch,
        last_step=plan.last_step,
        eval_clips=plan.num_eval_clips,
    )
    of_split = [is_whole for _, is_whole in course.evaluations_after(0)]
    whole, samples = sum(of_split), settings.at_start + of_split.count(False)
    is_compared = settings.choose_final and not plan.recipe.model.random_weights
    if settings.full_each_epoch and is_compared and plan.last_step == plan.total_steps:
        whole += 2  # the last model is compared with two others
    return samples * lasts_s(min(settings.sample_clips, plan.num_eval_clips)) + whole * lasts_s(plan.num_eval_clips)


def _step_ms(known: Speeds, profile: Profile, batching: Batching, phase: str, card: str) -> tuple[float, bool, str]:
    """Milliseconds of a step, whether just this was measured, and where it comes from."""
    slower = known.bf16_tflops[_REFERENCE_CARD] / known.bf16_tflops[card]
    clips = math.ceil(batching.clips_per_step / (batching.num_ranks * batching.accumulation))
    alike = [entry for entry in known.steps if entry.zero_3 == (profile.zero_stage == 3)]
    for entry in alike if batching.accumulation == 1 else []:
        timed = (entry.card, entry.num_gpus, entry.clips_per_gpu) == (card, batching.num_ranks, clips)
        if timed and phase in entry.ms:
            return entry.ms[phase], True, f"{batching.num_ranks} × {card}, {clips} clips per GPU"
    slowest: dict[int, float] = {}
    for entry in alike:
        ms = entry.ms.get(phase, max(entry.ms.values()))
        slowest[entry.clips_per_gpu] = max(ms, slowest.get(entry.clips_per_gpu, 0.0))
    timed_clips = sorted(slowest)
    # Below the fewest clips as these, beyond the most in proportion.
    ms = float(np.interp(clips, timed_clips, [slowest[each] for each in timed_clips]))
    ms *= max(1.0, clips / timed_clips[-1])
    cards = " and ".join(sorted({f"{entry.card}s" for entry in alike}))
    source = f"steps of {timed_clips[0]} to {timed_clips[-1]} clips per GPU on {cards}"
    if slower > 1:
        source += f", taken {slower:.1f} times as long, as data sheets have it"
    return ms * batching.accumulation * slower, False, source
