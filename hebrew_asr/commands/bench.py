"""``hebrew-asr bench``: how fast this trainer is on this machine, and how fast the usual way is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from hebrew_asr.commands.ranks import RankArguments
from hebrew_asr.config.options import Out
from hebrew_asr.config.values import PositiveInt

PLANNING = Path(__file__).parents[1] / "planning"
BASELINE_MICRO_BATCHES = (4, 8, 16, 32, 64)
"""The guide's, and larger ones to find the best."""
CLIPS = 1280


@dataclass
class Command(RankArguments):
    """Measure training speed: full-size random weights, made-up clips of realistic lengths, everything else real.

    Clips a second, time by part, share of the card's matrix rate and peak memory, in every phase of the recipe, and for
    how long an evaluation and a checkpoint stop training.

    $ hebrew-asr bench --ds h200x1 --model Qwen/Qwen3-ASR-1.7B
    """

    IDLE: ClassVar = ("baseline-steps without baseline",)
    model: str = "Qwen/Qwen3-ASR-1.7B"
    """Model folder or hub id; only its config and tokenizer are read."""
    phase: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Measure this phase only; may be given again."""
    also_clips: Annotated[list[PositiveInt], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Also measure steps of so many clips, such as the 8 that each of 8 GPUs takes of 64; may be given again."""
    steps: PositiveInt = 40
    """Timed steps per phase, after a warm-up."""
    baseline: bool = False
    """Also measure Hugging Face's Trainer on the padded native model, in the recipe's first phase, on one GPU."""
    baseline_steps: PositiveInt = 3
    """Timed steps of the baseline at each micro-batch."""
    out: Out[str | None] = None
    """Also write the figures here, as JSON."""
    traces: str | None = None
    """Also profile one step of each into this folder: tables by kernel, and traces for chrome://tracing."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import make_folder, refuse_overwriting
        from hebrew_asr.errors import EnvironmentProblem, UsageError
        from hebrew_asr.files import temporary_folder, write_json
        from hebrew_asr.launching.command import stopped_at_once
        from hebrew_asr.model.load import load_tokenizer
        from hebrew_asr.planning.bench_corpus import made_up_words, make_corpus

        recipe = self.load_recipe()
        known = [phase.name for phase in recipe.phases]
        unknown = sorted(set(self.phase) - set(known))
        if unknown:
            raise UsageError(f"recipe {recipe.name} has no phase {', '.join(unknown)}; it has {', '.join(known)}")
        if self.baseline and self.phase and known[0] not in self.phase:
            raise UsageError(f"--baseline compares phase {known[0]}: add --phase {known[0]}, or leave --phase out")
        if self.baseline and find_spec("accelerate") is None:
            raise EnvironmentProblem("--baseline runs Hugging Face's Trainer, which needs: pip install accelerate")
        if self.out:
            refuse_overwriting(Path(self.out), '"ceiling_tflops"')
            make_folder(Path(self.out).parent)
        if self.traces:
            make_folder(Path(self.traces))
        parent = Path(tempfile.gettempdir())
        with temporary_folder("hebrew-asr-bench-", parent) as folder, stopped_at_once(resumes=False):
            folder.mkdir(mode=0o700)
            train_clips = max(8 * recipe.clips_per_step, min(CLIPS, 24 * recipe.clips_per_step))
            words = made_up_words(load_tokenizer(self.model))
            make_corpus(folder / "data", train_clips, recipe.evaluation.sample_clips, words=words)
            changes = {
                "model.path": self.model,
                "model.random_weights": "true",
                "data.folder": folder / "data",
                "data.weights": "{}",  # drawn clips are of no data set
                "data.temperature": "{}",
                "logging.wandb": "false",
                "logging.report": "false",
            }
            self.set = [*self.set, *(f"{key}={value}" for key, value in changes.items())]
            out = Path(self.out) if self.out else folder / "figures.json"
            code = self._measure(self.phase or known, folder / "run", out)
            if code:
                return code
            figures = json.loads(out.read_text())
            _print_phases(figures)
            if self.baseline:
                figures["baseline"] = self._measure_baseline(folder)
                figures["ratios"] = _ratios(figures)
                write_json(out, figures)
                _print_baseline(figures)
        return 0

    def _measure(self, phases: list[str], run: Path, out: Path) -> int:
        from hebrew_asr.planning.bench import BenchArguments

        arguments = BenchArguments(
            ds=self.ds,
            recipe=self.recipe,
            set=self.set,
            run_dir=str(run),
            phases=phases,
            sizes=[self.load_recipe().clips_per_step, *self.also_clips],
            steps=self.steps,
            out=out,
            traces=None if self.traces is None else Path(self.traces),
        )
        return self.measure(PLANNING / "bench.py", arguments)

    def _measure_baseline(self, folder: Path) -> list[dict[str, Any]]:
        """In a process of its own; what it has found counts, should a larger micro-batch end it."""
        from hebrew_asr.files import write_json

        recipe, out = self.load_recipe(), folder / "baseline.json"
        write_json(folder / "recipe.json", recipe.to_dict())
        sizes = [str(size) for size in BASELINE_MICRO_BATCHES if size <= recipe.clips_per_step]
        options = [str(folder / "recipe.json"), str(out), str(self.baseline_steps), *sizes]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
        subprocess.run([sys.executable, str(PLANNING / "baseline.py"), *options], env=environment, check=False)
        return json.loads(out.read_text()) if out.is_file() else []


def _ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Ours over the baseline's, first phase, per device."""
    speeds = [entry["clips_per_s"] for entry in figures["baseline"] if entry["clips_per_s"]]
    if not speeds:
        return {}
    ours = figures["phases"][0]["clips_per_s"] / figures["num_ranks"]
    return {"to_first_micro_batch": ours / speeds[0], "to_best_micro_batch": ours / max(speeds)}


def _print_phases(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from hebrew_asr.streams import print_table
    from hebrew_asr.units import count

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
        table.add_row(title, *(format(phase[key], form) for phase in figures["phases"]))
    print_table(table)
    stops = figures["interruptions"]
    print(
        f"evaluating {count(stops['evaluated_clips'], 'clip')} stops training for {stops['evaluation_s']:.1f} s "
        f"({stops['longest_evaluation_s']:.1f} s at most), a checkpoint for {stops['checkpoint_s']:.2f} s"
    )


def _print_baseline(figures: dict[str, Any]) -> None:
    for entry in figures["baseline"]:
        speed = f"{entry['clips_per_s']:.1f} clips/s" if entry["clips_per_s"] else "out of memory"
        print(f"Hugging Face Trainer, native padded model, micro-batch {entry['micro_batch']}: {speed}")
    if figures["ratios"]:
        first, best = figures["ratios"].values()
        size = figures["baseline"][0]["micro_batch"]
        print(f"this trainer, per device: {first:.1f} × micro-batch {size}, {best:.1f} × the best")
