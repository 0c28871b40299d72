"""What a run's arguments name, read and found possible before a model is loaded or the ranks meet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.data.manifest import Clip, fingerprint, read_manifest
from hebrew_asr.engine import dist
from hebrew_asr.engine.checkpoint import Checkpoint, find_checkpoints
from hebrew_asr.engine.nested_keys import check_nested_keys
from hebrew_asr.errors import CheckpointError, DataError, UsageError
from hebrew_asr.locks import FolderLock
from hebrew_asr.profiles import Batching, Profile, batching, check_hardware, load_profile
from hebrew_asr.recipe import Recipe, load_recipe
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.memory import noted_fault


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
    resume: Checkpoint | None
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
    resume = _resumable(folder, recipe, arguments.resume)
    plan, noted = _within_memory(plan, folder, resume) if arguments.resume == "auto" else (plan, None)
    source = Path(recipe.data.folder)
    if recipe.data.prepare:
        from hebrew_asr.data.prepare import ensure_prepared  # it reads parquet; training alone never does

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
    return Checked(recipe, profile, plan, folder, train_clips, eval_clips, data, resume, noted)


def lock_of(folder: Path) -> FolderLock:
    """The first rank holds it while it trains."""
    return FolderLock(folder / "lock")


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
    if resume is not None and resume.values["state"].get("max_micro_batch"):
        plan = plan.limited_to(resume.values["state"]["max_micro_batch"])
    noted = noted_fault(folder)
    if noted is None or noted["max_micro_batch"] >= plan.max_micro_batch:
        return plan, None
    return plan.limited_to(noted["max_micro_batch"]), noted


def _resumable(folder: Path, recipe: Recipe, resume: str) -> Checkpoint | None:
    """The checkpoint to go on from, if any; refuses a used run directory otherwise.

    A change of what is learnt needs a new run; how long, how often and where it is logged may change.
    """
    used = (folder / "recipe.json").is_file()
    if not used:
        return None
    if resume == "never":
        raise UsageError(f"run directory {folder} is in use; add --resume auto to go on, or give --run another name")
    before = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(recipe.to_dict()))
    free = {"logging", "checkpoints", "evaluation", "faults", "max_steps"}
    changed = sorted(key for key in before.keys() | now.keys() if key not in free and before.get(key) != now.get(key))
    if changed:
        raise CheckpointError(
            f"run directory {folder} was made by another recipe ({before.get('name')}; it differs in "
            f"{', '.join(changed)}); give --run another name, or go back to its recipe"
        )
    found = find_checkpoints(folder / "checkpoints")
    return found[-1] if found else None
