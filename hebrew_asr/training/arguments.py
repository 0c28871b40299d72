"""What a run is started with, and whether there is anything to do; needs neither torch nor a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hebrew_asr.config.recipe import Recipe, as_begun, changes, load_recipe
from hebrew_asr.locks import FolderLock

SUMMARY = "summary.json"
"""Written last, into the run directory: the run has trained all its steps and its model is there."""
_PLACES = ("model.path", "data.folder")
"""What lies there is compared where a run is built, not here."""


@dataclass
class TrainArguments:
    """Train Qwen3-ASR for Hebrew. Usually through the launcher:

    deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json
    """

    ds: str
    """Hardware profile, a DeepSpeed JSON: ds_configs/a100x8.json, ds_configs/cpu.json, …"""
    recipe: str = "round2"
    """Recipe: a JSON file, or the name of a shipped one."""
    set: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """A change to the recipe, such as optimizer.weight_decay=0.1 or phases.0.epochs=1; may be given again."""
    run_dir: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Run directory; runs/<recipe name> unless given."""
    resume: Literal["auto", "never"] = "never"
    """auto, or nothing: go on from the newest complete checkpoint in the run directory; start if there is none."""

    def folder(self, recipe: Recipe) -> Path:
        """The run directory."""
        return Path(self.run_dir or f"runs/{recipe.name}")


def lock_of(folder: Path) -> FolderLock:
    """The first rank holds it while it trains."""
    return FolderLock(folder / "lock")


def finished(arguments: TrainArguments) -> str | None:
    """What to say of a run that is to be resumed and has nothing left to do; None for any other."""
    if arguments.resume != "auto":
        return None
    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.folder(recipe)
    try:
        summary, before, facts = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (SUMMARY, "recipe.json", "run.json")
        )
        last = min(facts["total_steps"], recipe.max_steps or facts["total_steps"])
        is_done = summary["steps"] >= last and not changes(before, as_begun(recipe, before), counted=_PLACES)
    except (OSError, ValueError, KeyError, TypeError):  # no finished run; whatever is wrong is told by the checks
        return None
    return f"{folder} is a finished run: {summary['steps']} steps, model in {folder / 'final'}" if is_done else None
