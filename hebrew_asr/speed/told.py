"""What was measured, as tables and lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.table import Table

from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.planning.clock import run_clock
from hebrew_asr.planning.plan import make_plan
from hebrew_asr.streams import print_table
from hebrew_asr.units import count


def print_phases(figures: dict[str, Any]) -> None:
    """The table of every phase and size, and what interrupts training."""
    table = Table(
        title=f"{figures['num_ranks']} × {figures['device']}, profile {figures['profile']}", title_justify="left"
    )
    rows = {
        "clips per step": ("clips_per_step", "d"),
        "clips/s": ("clips_per_s", ".1f"),
        "audio s/s": ("audio_s_per_s", ".0f"),
        "tokens/s": ("tokens_per_s", ".0f"),
        "ms per step": ("ms_per_step", ".1f"),
        "  median": ("median_ms", ".1f"),
        "  slowest": ("slowest_ms", ".1f"),
        "  forward ms, alone": ("forward_ms", ".1f"),
        "  backward ms, alone": ("backward_ms", ".1f"),
        "  optimizer ms, alone": ("optimizer_ms", ".1f"),
        "  network alone, ms": ("exposed_ms", ".1f"),
        "waiting for data": ("data_wait_share", ".1%"),
        "padding": ("padding_share", ".1%"),
        "TFLOP/s per device": ("tflops", ".3g"),
        "of its matrix rate": ("mfu", ".1%"),
        "peak GiB": ("peak_gib", ".1f"),
        "first compile s": ("compile_s", ".0f"),
    }
    table.add_column("phase")
    for phase in figures["phases"]:
        table.add_column(phase["phase"], justify="right")
    for title, (key, form) in rows.items():
        values = [phase[key] for phase in figures["phases"]]
        if None not in values:
            table.add_row(title, *(format(value, form) for value in values))
    print_table(table)
    stops = figures["interruptions"]
    print(
        f"evaluating {count(stops['evaluated_clips'], 'clip')} stops training for {stops['evaluation_s']:.1f} s "
        f"({stops['longest_evaluation_s']:.1f} s at most), a checkpoint for {stops['checkpoint_s']:.2f} s"
    )


def print_whole(figures: dict[str, Any], recipe: Recipe, profile: Profile) -> None:
    """How long the recipe's data would take: steps and start as measured, the rest as ``plan`` has it."""
    speeds = {
        phase["phase"]: phase["clips_per_s"]
        for phase in figures["phases"]
        if phase["clips_per_step"] == recipe.clips_per_step
    }
    if not all(phase.name in speeds for phase in recipe.phases):
        return
    plan = make_plan(recipe, profile, figures["num_ranks"])
    clips = [phase.epochs * plan.num_clips for phase in recipe.phases]
    steps_s = sum(trained / speeds[phase.name] for trained, phase in zip(clips, recipe.phases, strict=True))
    clock = run_clock(plan, clips_per_s=sum(clips) / steps_s)
    assert clock is not None
    compile_s = sum(phase["compile_s"] for phase in figures["phases"])
    clock = replace(clock, steps_s=steps_s, compile_s=compile_s, startup_s=figures["startup_s"])
    print(
        f"{count(recipe.epochs, 'epoch')} of {plan.num_clips:,} clips would take {clock.total_s / 60:.0f} minutes "
        f"here, {steps_s / 60:.1f} of them steps: {clock.startup_s:.0f} s to start and {compile_s:.0f} s of compiling "
        "as measured, evaluations, checkpoints and recording as plan has them"
    )


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Ours over the baseline's, first phase, per device."""
    speeds = [entry["clips_per_s"] for entry in figures["baseline"] if entry["clips_per_s"]]
    if not speeds:
        return {}
    ours = figures["phases"][0]["clips_per_s"] / figures["num_ranks"]
    return {"to_first_micro_batch": ours / speeds[0], "to_best_micro_batch": ours / max(speeds)}


def print_baseline(figures: dict[str, Any]) -> None:
    """Both ways, and how many times as fast this one is."""
    for entry in figures["baseline"]:
        speed = f"{entry['clips_per_s']:.1f} clips/s" if entry["clips_per_s"] else "out of memory"
        print(f"Hugging Face Trainer, native padded model, micro-batch {entry['micro_batch']}: {speed}")
    if figures["ratios"]:
        first, best = figures["ratios"].values()
        size = figures["baseline"][0]["micro_batch"]
        print(f"this trainer, per device: {first:.1f} × micro-batch {size}, {best:.1f} × the best")
