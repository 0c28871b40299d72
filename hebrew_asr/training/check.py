"""Reads what a run's arguments name and checks that it is possible, before a model is loaded or the ranks meet."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.checkpoints.base_model import BaseModel
from hebrew_asr.checkpoints.resuming import Resumable, find_resumable, is_used, recipe_before
from hebrew_asr.checkpoints.sealed import Checkpoint
from hebrew_asr.config.batching import Batching, derive_batching
from hebrew_asr.config.profiles import Profile, check_hardware, load_profile
from hebrew_asr.config.recipe import Recipe, as_begun, changes
from hebrew_asr.data.clips import Clips
from hebrew_asr.data.manifest import open_manifest
from hebrew_asr.engine import dist
from hebrew_asr.engine.nested_keys import check_nested_keys
from hebrew_asr.errors import CheckpointError, DataError, UsageError, first_few
from hebrew_asr.launching import place
from hebrew_asr.logs import log
from hebrew_asr.remote.cache import limit_cache, set_folder
from hebrew_asr.remote.joined import JoinedSet, joined_sets
from hebrew_asr.remote.paths import is_url
from hebrew_asr.report.records import FaultRecord
from hebrew_asr.training.arguments import TrainArguments, finished, lock_of
from hebrew_asr.training.identity import code_version, shared_parts
from hebrew_asr.training.out_of_memory import earlier_fault
from hebrew_asr.training.train_state import TrainState


@dataclass(kw_only=True)
class RunSpec:
    """What the arguments name, read and found possible, before any process group exists."""

    recipe: Recipe
    profile: Profile
    batching: Batching
    folder: Path
    train_clips: Clips
    eval_clips: Clips
    sets: list[JoinedSet]
    """Those that the data were joined of; none where they are one set."""
    data_fingerprint: str
    """Fingerprint of the training manifest: the order of clips follows from it."""
    resumable: Resumable
    out_of_memory: FaultRecord | None
    """Out-of-memory record of an earlier session, if it limits this one's micro-batch."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of both manifests."""
        return {"train.jsonl": self.data_fingerprint, "eval.jsonl": self.eval_clips.fingerprint}


def check(arguments: TrainArguments, num_ranks: int | None = None) -> RunSpec:
    """Read and check recipe, profile, hardware, run directory and manifests.

    Args:
        arguments: of the run.
        num_ranks: ranks that will be started on this machine; those that the launcher started unless given.

    Raises:
        HebrewASRError: the first kind of mistake found, in words.
    """
    place.collective_timeout_s()
    recipe, profile = arguments.load_recipe(), load_profile(arguments.ds)
    check_nested_keys(profile)
    batching = derive_batching(profile, recipe, num_ranks or place.num_ranks_from_environment())
    check_hardware(profile, num_ranks or place.local_ranks_from_environment(), torch.cuda.device_count())
    folder = arguments.folder(recipe)
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"run directory {folder} is no folder: give --run another name")
    lock_of(folder).refuse_if_held(f"run directory {folder}", is_main=place.rank_from_environment() == 0)
    _refuse_foreign(folder)
    resumable = Resumable() if arguments.resume == "never" else find_resumable(folder)
    resume = resumable.newest
    before = recipe_before(folder, resume)
    recipe = as_begun(recipe, before)
    _refuse_another_recipe(recipe, before, folder, resume)
    _refuse_used(folder, arguments)
    batching, out_of_memory = _within_memory(batching, folder, resume, arguments.resume)
    limit_cache(recipe.data.cache_gib)
    source = set_folder(recipe.data.folder)
    if recipe.data.prepare and not is_url(recipe.data.folder):
        from hebrew_asr.corpus.prepare import ensure_prepared  # it reads parquet; training alone never does

        # Misspelled, or left by a prepare that failed, rather than the place for the recipe's corpora.
        if arguments.data and not any(source.glob("*")):
            raise DataError(f"--data {source}: no set is there; hebrew-asr prepare --source … --out {source} makes one")
        ensure_prepared(source)
    train_clips = open_manifest(source / "train.jsonl", allow_outside=recipe.data.allow_outside)
    _refuse_no_evaluation(source / "eval.jsonl")
    eval_clips = open_manifest(source / "eval.jsonl", allow_outside=recipe.data.allow_outside)
    _refuse_long_clips(train_clips, recipe)
    data = train_clips.fingerprint
    if resume is not None:
        _refuse_inexact(resume, profile, data)
    return RunSpec(
        recipe=recipe,
        profile=profile,
        batching=batching,
        folder=folder,
        train_clips=train_clips,
        eval_clips=eval_clips,
        sets=joined_sets(source),
        data_fingerprint=data,
        resumable=resumable,
        out_of_memory=out_of_memory,
    )


def _refuse_no_evaluation(manifest: Path) -> None:
    """``prepare --eval-fraction 0`` leaves an empty manifest; say what to do about it."""
    if manifest.is_file() and manifest.stat().st_size == 0:
        raise DataError(
            f"{manifest} holds no clips, and training measures on them: prepare without --eval-fraction 0, or with "
            "--split random where all clips belong together; or copy train.jsonl over it, to see them learned by heart"
        )


def _refuse_long_clips(train_clips: Clips, recipe: Recipe) -> None:
    longest = train_clips[int(train_clips.durations_s.argmax())]
    if longest.duration_s > recipe.data.max_duration_s:
        raise DataError(
            f"clip {longest.id} in {Path(recipe.data.folder) / 'train.jsonl'} lasts {longest.duration_s:.1f} s, the "
            f"recipe's data.max_duration_s is {recipe.data.max_duration_s:g}; prepare shorter clips or raise it"
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with a run's file names and neither recipe nor checkpoints: its files are somebody else's.

    And a model's folder, a set's and that of a run's checkpoints; and one where a folder has the name of a run's file,
    or the other way around.
    """
    files = ("metrics.jsonl", "summary.json", "run.json", "deepspeed.json", "report.html")
    folders = ("final", "samples")
    other_makings = ("config.json", "train.jsonl", "step-*")
    found = [name for name in (*folders, *files) if os.path.lexists(folder / name)]
    found += [path.name for name in other_makings for path in sorted(folder.glob(name))[:1]]
    is_run = (folder / "recipe.json").is_file() or any(folder.glob("checkpoints/step-*"))
    if found and not is_run:
        raise UsageError(
            f"{folder} holds {', '.join(found)} and no recipe.json, so it is no run directory: give --run another name"
        )
    in_the_way = [name for name in (*files, "recipe.json", "STOP") if (folder / name).is_dir()]
    in_the_way += [name for name in (*folders, "checkpoints") if (folder / name).is_file()]
    if in_the_way:
        raise UsageError(
            f"{folder} holds {', '.join(in_the_way)}, in which a run keeps something else: move it away, or give --run "
            "another name"
        )


def _refuse_inexact(resume: Checkpoint, profile: Profile, data: str) -> None:
    """Refuse another precision or training manifest than the checkpoint's; ranks, ZeRO stage and offload may differ."""
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


def _within_memory(
    batching: Batching, folder: Path, resume: Checkpoint | None, mode: str
) -> tuple[Batching, FaultRecord | None]:
    """The micro-batches that fitted before; the out-of-memory record, if it is newer than the checkpoint."""
    if mode == "never":
        return batching, None
    limit = None if resume is None else TrainState.of(resume).max_micro_batch
    batching = batching if limit is None else batching.limited_to(limit)
    record = earlier_fault(folder)
    smaller = batching if record is None else batching.limited_to(record.max_micro_batch or batching.max_micro_batch)
    return (batching, None) if smaller == batching else (smaller, record)


def _refuse_used(folder: Path, arguments: TrainArguments) -> None:
    """A run of this recipe is gone on with only where that is asked for."""
    if arguments.resume != "never" or not is_used(folder):
        return
    if (message := finished(replace(arguments, resume="auto"))) is not None:
        raise UsageError(f"{message}; give --run another name to train anew")
    raise UsageError(f"run directory {folder} holds a run; add --resume auto to go on, or give --run another name")


def _refuse_another_recipe(
    recipe: Recipe, before: dict[str, Any] | None, folder: Path, newest: Checkpoint | None
) -> None:
    """A change of what is learned needs a new run; the recipe's fields say what may change."""
    if before is None and newest is None:
        return
    if before is None:
        raise CheckpointError(
            f"run directory {folder} has checkpoints and no recipe.json that can be read, and they do not say which "
            f"recipe made them; put its recipe.json back, or give --run another name"
        )
    knows_its_model = newest is None or "base_model" in newest.values
    changed = changes(before, recipe, counted=() if knows_its_model else ("model.path",))
    if changed:
        raise CheckpointError(
            f"run directory {folder} was made by another recipe ({before.get('name')}; {first_few(changed)}); "
            f"give --run another name, or go back to its recipe"
        )


def shared_by_ranks(spec: RunSpec, base: BaseModel) -> dict[str, dict[str, Any]]:
    """What every rank must have in common with the others, for ``refuse_ranks_that_differ``."""
    profile = {**spec.profile.config, "_hardware": asdict(spec.profile.hardware)}
    resume = spec.resumable.newest.step if spec.resumable.newest else None
    return {
        "recipe": shared_parts(spec.recipe),
        "profile": profile,
        "data": spec.fingerprints,
        "model": {"weights": base.weights_exact, "vocabulary": base.tokenizer},
        "code": code_version(),
        "start": {"checkpoint": resume, "batching": str(spec.batching)},
    }


def refuse_another_base(resume: Checkpoint, base: BaseModel, ranks: dist.Ranks) -> None:
    """A checkpoint holds what trains; its frozen weights are the base model's, which must be the same.

    Raises:
        CheckpointError: the base model has other weights or another vocabulary than the one that was trained on.
    """
    written = resume.values.get("base_model")
    if written is None:
        if ranks.is_main:
            log.warning(
                "%s does not say which base model it was trained on, so whether the frozen weights are the same is "
                "not known; %s is taken",
                *(resume.path, base),
            )
        return
    before = BaseModel(**written)
    other = base.differs_from(before)
    if other is not None:
        mistake = CheckpointError(
            f"{resume.path} was trained on {before}, and {base} has other {other}: two models would be mixed; set "
            f"model.path to the first, or give --run another name"
        )
        raise ranks.in_common(mistake)
