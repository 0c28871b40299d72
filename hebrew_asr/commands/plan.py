"""``hebrew-asr plan``: what a run will need and whether it fits, before any GPU is rented."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hebrew_asr.config.values import PositiveFloat, PositiveInt
from hebrew_asr.training.arguments import DataArguments
from hebrew_asr.units import GIB, count, gib

if TYPE_CHECKING:
    from hebrew_asr.planning.clock import Clock
    from hebrew_asr.planning.plan import PhaseMemory, RunPlan


@dataclass
class Command(DataArguments):
    """Memory of each phase on each GPU, steps, disk and time of a run; no GPU, weights, data or network needed.

    Leaves with exit code 4 if a phase does not fit the card, and says what would. Lengths are those of the recipe's
    data folder where there is one.

    $ hebrew-asr plan --ds a100x8 --price-per-hour 12
    $ hebrew-asr plan --ds h200x1 --data mine --json
    """

    num_gpus: PositiveInt | None = None
    """Ranks; the profile's unless given."""
    memory_gib: PositiveFloat | None = None
    """Memory of one card, to see whether the profile fits another one; the profile's unless given."""
    clips_per_s: PositiveFloat | None = None
    """Training speed of all GPUs together, as `hebrew-asr bench` measures it; otherwise from speeds measured before."""
    price_per_hour: PositiveFloat | None = None
    """What the whole node costs, in any currency, for the price of the run."""
    json: bool = False
    """Print the plan as JSON instead."""

    def run(self) -> int:
        from dataclasses import replace

        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.errors import EnvironmentProblem
        from hebrew_asr.planning.clock import run_clock
        from hebrew_asr.planning.plan import make_plan, what_would_fit

        recipe, profile = self.load_recipe(), load_profile(self.ds)
        self.refuse_no_set()
        if not profile.is_plain:
            from hebrew_asr.engine.nested_keys import check_nested_keys

            check_nested_keys(profile)
        if self.memory_gib is not None:
            profile = replace(profile, hardware=replace(profile.hardware, memory_gib=self.memory_gib))
        plan = make_plan(recipe, profile, self.num_gpus or profile.hardware.num_ranks)
        clock = run_clock(plan, self.clips_per_s)
        if self.json:
            print(json.dumps(as_json(plan, clock, self.price_per_hour), ensure_ascii=False, indent=1))
        else:
            _print_memory(plan)
            _print_run(plan)
            _print_clock(clock, self.price_per_hour)
        if not plan.fits:
            fitting = what_would_fit(plan)
            raise EnvironmentProblem(
                f"profile {profile.source} needs {plan.needed_gib:.1f} GiB on each card and it has "
                f"{plan.memory_gib:g}; "
                + (fitting or "no micro-batch fits, nor does offloading the optimizer: use more GPUs or ZeRO stage 3")
            )
        return 0


def as_json(plan: RunPlan, clock: Clock | None, price_per_hour: float | None) -> dict[str, Any]:
    """The plan as plain values; memory in bytes unless named otherwise."""
    from hebrew_asr.planning.clock import PREPARE_CPU_S_PER_CLIP

    time = {**asdict(clock), "total_s": clock.total_s} if clock else None
    phases = [{**asdict(phase), "peak": phase.peak} for phase in plan.phases]
    return {
        "profile": plan.profile.name,
        "recipe": plan.recipe.name,
        "num_ranks": plan.batching.num_ranks,
        "batching": str(plan.batching),
        "shapes": [asdict(shape) for shape in plan.shapes],
        "phases": phases,
        "needed_gib": plan.needed_gib,
        "memory_gib": plan.memory_gib,
        "fits": plan.fits,
        "clips": plan.num_clips,
        "lengths_from_data": plan.from_data,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "last_step": plan.last_step,
        "phase_starts": plan.phase_starts,
        "checkpoint_bytes": plan.disk.checkpoint,
        "disk_bytes": plan.disk.total,
        "eval_clips": plan.num_eval_clips,
        "prepare_core_s": None if plan.from_data else plan.num_clips * PREPARE_CPU_S_PER_CLIP,
        "time": time,
        "price": clock.total_s / 3600 * price_per_hour if clock and price_per_hour else None,
    }


def _print_memory(plan: RunPlan) -> None:
    from rich.table import Table

    from hebrew_asr.streams import print_table

    profile = plan.profile
    sharding = f"ZeRO-{profile.zero_stage}, {profile.precision}"
    title = f"{profile.name}: {sharding}, GiB on each of {count(plan.batching.num_ranks, 'card')}"
    table = Table(title=title, title_justify="left")
    table.add_column("phase")
    for phase in plan.phases:
        table.add_column(phase.phase, justify="right")
    for name, values in _rows(plan.phases).items():
        table.add_row(name, *values)
    print_table(table)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    room = plan.memory_gib - plan.needed_gib
    print(
        f"{verdict}: {plan.needed_gib:.1f} of {plan.memory_gib:g} GiB, with what torch does not count "
        f"(CUDA context, NCCL, fragmentation); {abs(room):.1f} GiB {'to spare' if room >= 0 else 'too little'}"
    )
    host = max(phase.zero.host for phase in plan.phases)
    if host:
        print(f"host memory for the offloaded optimizer: {gib(host)} per rank")


def _rows(phases: list[PhaseMemory]) -> dict[str, list[str]]:
    kept = [_in_gib(phase.zero.kept) for phase in phases]
    return {
        "weights that train": [f"{phase.trainable:,}" for phase in phases],
        "weights": [_in_gib(phase.zero.weights) for phase in phases],
        **({"weights that wait for backward": kept} if any(phase.zero.kept for phase in phases) else {}),
        "masters and moments": [_in_gib(phase.zero.optimizer) for phase in phases],
        "gradients": [_in_gib(phase.zero.gradients + phase.zero.step_gradients) for phase in phases],
        "communication buffers": [_in_gib(phase.zero.buckets + phase.zero.step_buckets) for phase in phases],
        "activations, largest batch": [_in_gib(phase.activations) for phase in phases],
        "  of these, logits": [_in_gib(phase.logits) for phase in phases],
        "peak": [_in_gib(phase.peak) for phase in phases],
        "reached in": [phase.peak_at for phase in phases],
    }


def _print_run(plan: RunPlan) -> None:
    from hebrew_asr.planning.clock import PREPARE_CPU_S_PER_CLIP

    recipe = plan.recipe
    lengths = f"lengths of {recipe.data.folder}" if plan.from_data else "made-up lengths, 4.65 s on average"
    largest = plan.shapes[-1]
    print(f"{plan.batching}; largest batch {largest.tokens:,} tokens, {largest.labels:,} labels")
    print(
        f"{count(plan.num_clips, 'clip')} ({lengths}): {count(plan.steps_per_epoch, 'step')} per epoch, "
        f"{plan.total_steps:,} in {count(recipe.epochs, 'epoch')}"
        + (f"; max_steps ends it after {plan.last_step:,}" if plan.last_step < plan.total_steps else "")
    )
    if not plan.from_data:
        hours = plan.num_clips * PREPARE_CPU_S_PER_CLIP / 3600
        print(f"data preparation before it: the download, then {hours:.1f} core-hours, spread over all cores")
    for phase, start, steps in list(zip(recipe.phases, plan.phase_starts, plan.phase_steps, strict=True))[1:]:
        is_reached = "" if steps else " (not reached)"
        print(f"switch to phase {phase.name} after step {start:,}{is_reached}")
    print(
        f"disk: {gib(plan.disk.checkpoint)} per checkpoint; {gib(plan.disk.total)} in all "
        f"({plan.disk.kept} kept, one being written, the final model)"
    )
    print(f"host memory of all ranks, which checkpoints are written from: {gib(plan.disk.checkpoint)}")


def _print_clock(clock: Clock | None, price_per_hour: float | None) -> None:
    if clock is None:
        print("time: nothing comparable was measured; `hebrew-asr bench` does, and --clips-per-s takes its figure")
        return
    parts = {
        "steps": clock.steps_s,
        "compiling with an empty cache": clock.compile_s,
        "rehearsal": clock.rehearsal_s,
        "recording CUDA graphs": clock.recording_s,
        "evaluations": clock.evaluation_s,
        "checkpoints and start": clock.checkpoint_s + clock.startup_s,
    }
    told = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in parts.items() if seconds)
    price = f", {clock.total_s / 3600 * price_per_hour:.2f} at {price_per_hour:g} per hour" if price_per_hour else ""
    print(f"time: {clock.total_s / 60:.0f} minutes{price}; in minutes: {told}")
    print(f"{'measured' if clock.measured else 'scaled'}: {clock.source}")


def _in_gib(size: int) -> str:
    return f"{size / GIB:.2f}"
