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

SPEED = Path(__file__).parents[1] / "speed"
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
        from hebrew_asr.config.profiles import load_profile
        from hebrew_asr.errors import EnvironmentProblem, UsageError
        from hebrew_asr.files import temporary_folder, write_json
        from hebrew_asr.launching.command import stopped_at_once
        from hebrew_asr.model.load import load_tokenizer
        from hebrew_asr.planning.bench_corpus import made_up_words, make_corpus
        from hebrew_asr.speed.told import print_baseline, print_phases, print_whole, ratios

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
            print_phases(figures)
            print_whole(figures, recipe, load_profile(self.ds))
            if self.baseline:
                figures["baseline"] = self._measure_baseline(folder)
                figures["ratios"] = ratios(figures)
                write_json(out, figures)
                print_baseline(figures)
        return 0

    def _measure(self, phases: list[str], run: Path, out: Path) -> int:
        from hebrew_asr.speed.bench import BenchArguments

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
        return self.measure(SPEED / "bench.py", arguments)

    def _measure_baseline(self, folder: Path) -> list[dict[str, Any]]:
        """In a process of its own; what it has found counts, should a larger micro-batch end it."""
        from hebrew_asr.files import write_json

        recipe, out = self.load_recipe(), folder / "baseline.json"
        write_json(folder / "recipe.json", recipe.to_dict())
        sizes = [str(size) for size in BASELINE_MICRO_BATCHES if size <= recipe.clips_per_step]
        options = [str(folder / "recipe.json"), str(out), str(self.baseline_steps), *sizes]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
        subprocess.run([sys.executable, str(SPEED / "baseline.py"), *options], env=environment, check=False)
        return json.loads(out.read_text()) if out.is_file() else []
