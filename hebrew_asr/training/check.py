"""What a run's arguments name, read and found possible before a model is loaded or the ranks meet."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.config.profiles import Batching, Profile, batching, check_hardware, load_profile
from hebrew_asr.config.recipe import Recipe, as_begun, changes, load_recipe
from hebrew_asr.data.manifest import Clip, fingerprint, read_manifest
from hebrew_asr.engine import dist
from hebrew_asr.engine.nested_keys import check_nested_keys
from hebrew_asr.engine.sealed import Checkpoint
from hebrew_asr.errors import CheckpointError, DataError, UsageError
from hebrew_asr.training.arguments import TrainArguments, lock_of
from hebrew_asr.training.identity import BaseModel, code_version, shared_parts
from hebrew_asr.training.memory import noted_fault
from hebrew_asr.training.resuming import Resumable, find_resumable, is_used, recipe_before
from hebrew_asr.training.state import TrainState


@dataclass(frozen=True)
class Checked:
    """What the arguments name, read and found possible, before any process group exists."""

    recipe: Recipe
    profile: Profile
    plan: Batching
    folder: Path
    train_clips: list[Clip]
    eval_clips: list[Clip]
    data_fingerprint: str
    resumable: Resumable
    noted_fault: dict[str, Any] | None


def check(arguments: TrainArguments) -> Checked:
    """Read and check recipe, profile, hardware, run directory and manifests.

    Raises:
        HebrewASRError: the first kind of mistake found, in words.
    """
    num_ranks = dist.num_ranks_from_environment()
    recipe = load_recipe(arguments.recipe, arguments.set)
    profile = load_profile(arguments.ds)
    check_nested_keys(profile)
    plan = batching(profile, recipe, num_ranks)
    check_hardware(profile, dist.local_ranks_from_environment(), torch.cuda.device_count())
    folder = arguments.folder(recipe)
    lock_of(folder).refuse_if_held(f"run directory {folder}", is_main=dist.rank_from_environment() == 0)
    _refuse_foreign(folder)
    recipe = as_begun(recipe, recipe_before(folder))
    resumable = _resumable(folder, recipe, arguments.resume)
    resume = resumable.newest
    plan, noted = _within_memory(plan, folder, resume) if arguments.resume == "auto" else (plan, None)
    source = Path(recipe.data.folder)
    if recipe.data.prepare:
        from hebrew_asr.corpus.prepare import ensure_prepared  # it reads parquet; training alone never does

        ensure_prepared(source)
    train_clips = read_manifest(source / "train.jsonl", allow_outside=recipe.data.allow_outside)
    eval_clips = read_manifest(source / "eval.jsonl", allow_outside=recipe.data.allow_outside)
    longest = max(train_clips, key=lambda clip: clip.duration_s)
    if longest.duration_s > recipe.data.max_duration_s:
        raise DataError(
            f"clip {longest.id} in {source / 'train.jsonl'} lasts {longest.duration_s:.1f} s, the recipe's "
            f"data.max_duration_s is {recipe.data.max_duration_s:g}; prepare shorter clips or raise it"
        )
    data = fingerprint(train_clips)
    if resume is not None:
        _refuse_inexact(resume, profile, data)
    return Checked(recipe, profile, plan, folder, train_clips, eval_clips, data, resumable, noted)


def _refuse_foreign(folder: Path) -> None:
    """A folder without a recipe and checkpoints is no run: what one would write over there is somebody else's."""
    written = ("final", "samples", "metrics.jsonl", "summary.json", "run.json", "deepspeed.json")
    found = [name for name in written if os.path.lexists(folder / name)]
    is_run = (folder / "recipe.json").is_file() or any(folder.glob("checkpoints/step-*"))
    if found and not is_run:
        raise UsageError(
            f"{folder} holds {', '.join(found)} and no recipe.json, so it is no run directory: give --run another name"
        )


def _refuse_inexact(resume: Checkpoint, profile: Profile, data: str) -> None:
    """Rank count, ZeRO stage, offload and micro-batch may differ from the checkpoint's; these two may not."""
    written = resume.values.get("precision", profile.precision)
    if written != profile.precision:
        raise CheckpointError(
            f"{resume.path} was trained in {written} and {profile.source} trains in {profile.precision}: frozen "
            f"weights would be others; resume with a profile in {written}, of any ZeRO stage and rank count"
        )
    if resume.values.get("data", data) != data:
        raise CheckpointError(
            f"the training manifest has changed since {resume.path} was written, and with it the order of clips; "
            f"restore it, or give --run another name"
        )


def _within_memory(plan: Batching, folder: Path, resume: Checkpoint | None) -> tuple[Batching, dict[str, Any] | None]:
    """Keep to the micro-batch that fitted before; the fault, if it is newer than the checkpoint."""
    limit = None if resume is None else TrainState.of(resume).max_micro_batch
    plan = plan if limit is None else plan.limited_to(limit)
    noted = noted_fault(folder)
    if noted is None or noted["max_micro_batch"] >= plan.max_micro_batch:
        return plan, None
    return plan.limited_to(noted["max_micro_batch"]), noted


def _resumable(folder: Path, recipe: Recipe, resume: str) -> Resumable:
    """What there is to go on from; refuses a used run directory where that is not asked for.

    A change of what is learned needs a new run; the recipe's fields say what may change.
    """
    if not is_used(folder):
        return Resumable()
    if resume == "never":
        raise UsageError(f"run directory {folder} is in use; add --resume auto to go on, or give --run another name")
    found = find_resumable(folder)
    newest = found.newest
    before = recipe_before(folder, newest)
    if before is None and newest is None:
        return found
    if before is None:
        raise CheckpointError(
            f"run directory {folder} has checkpoints and no recipe.json that can be read, and they do not say which "
            f"recipe made them; put its recipe.json back, or give --run another name"
        )
    knows_its_model = newest is None or "base_model" in newest.values
    changed = changes(before, recipe, counted=() if knows_its_model else ("model.path",))
    if changed:
        raise CheckpointError(
            f"run directory {folder} was made by another recipe ({before.get('name')}; {'; '.join(changed)}); "
            f"give --run another name, or go back to its recipe"
        )
    return found


def shared_by_ranks(checked: Checked, base: BaseModel) -> dict[str, dict[str, Any]]:
    """What every rank must have in common with the others, for ``refuse_ranks_that_differ``."""
    profile = {**checked.profile.config, "_hardware": asdict(checked.profile.hardware)}
    resume = checked.resumable.newest.step if checked.resumable.newest else None
    return {
        "recipe": shared_parts(checked.recipe),
        "profile": profile,
        "data": {"train.jsonl": checked.data_fingerprint, "eval.jsonl": fingerprint(checked.eval_clips)},
        "model": {"weights": base.weights_exact, "vocabulary": base.tokenizer},
        "code": code_version(),
        "start": {"checkpoint": resume, "batching": str(checked.plan)},
    }


def refuse_another_base(resume: Checkpoint, base: BaseModel, ranks: dist.Ranks) -> None:
    """A checkpoint holds what trains; its frozen weights are the base model's, which must be the same.

    Raises:
        CheckpointError: the base model has other weights or another vocabulary than the one that was trained on.
    """
    written = resume.values.get("base_model")
    if written is None:
        if ranks.is_main:
            print(
                f"warning: {resume.path} does not say which base model it was trained on, so whether the frozen "
                f"weights are the same is not known; {base} is taken",
                file=sys.stderr,
            )
        return
    before = BaseModel(**written)
    other = base.differs_from(before)
    if other is not None:
        raise CheckpointError(
            f"{resume.path} was trained on {before}, and {base} has other {other}: two models would be mixed; set "
            f"model.path to the first, or give --run another name"
        )
