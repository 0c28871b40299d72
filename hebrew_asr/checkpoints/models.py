"""A model as it was at a checkpoint, or the mean of several: the base model with the trained weights of those steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hebrew_asr.checkpoints.base_model import BaseModel
from hebrew_asr.checkpoints.resuming import recipe_before
from hebrew_asr.checkpoints.sealed import SEAL, Checkpoint, find_checkpoints, ranked_by_wer
from hebrew_asr.config.recipe import recipe_from_dict
from hebrew_asr.engine.optimizer_state import StateReader
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import such_as_runs
from hebrew_asr.model.load import load_model, load_tokenizer


@dataclass(frozen=True)
class Candidate:
    """A model that may become a run's final one."""

    kind: Literal["last", "best", "mean"]
    checkpoints: tuple[Checkpoint, ...]
    """Checkpoints that it is the mean of; one where it is the last or the best."""

    @property
    def title(self) -> str:
        """Such as ``mean (steps 1500, 1565)``."""
        steps = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints)
        return f"{self.kind} ({'steps' if len(self.checkpoints) > 1 else 'step'} {steps})"


def candidates(run_folder: Path, averaged: Sequence[Checkpoint] = ()) -> list[Candidate]:
    """The model of the last step, of the best checkpoint and the mean, in this order; only those that differ.

    Args:
        run_folder: the run directory.
        averaged: checkpoints of the mean; those of ``of_last_phase`` unless given.

    Raises:
        CheckpointError: there is no checkpoint, or one cannot be read.
    """
    kept = kept_checkpoints(run_folder)
    found = [Candidate("last", (kept[-1],))]
    ranked = ranked_by_wer(kept)
    if ranked and ranked[-1][0].step != kept[-1].step:
        found.append(Candidate("best", (ranked[-1][0],)))
    averaged = averaged or of_last_phase(kept)
    if len(averaged) > 1:
        found.append(Candidate("mean", tuple(averaged)))
    return found


def kept_checkpoints(run_folder: Path) -> list[Checkpoint]:
    """Those of a run, oldest first. Raises CheckpointError where there is none."""
    kept = find_checkpoints(run_folder / "checkpoints")
    if not kept:
        hint = f"give the directory of a run{such_as_runs(run_folder)}"
        raise CheckpointError(f"no checkpoint in {run_folder / 'checkpoints'}; {hint}")
    return kept


def of_last_phase(kept: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints that train the same weights as the last one."""
    trained = []
    with _told_if_dropped(kept):
        for checkpoint in kept:
            with StateReader(checkpoint.path) as reader:
                trained.append(set(reader.parameters()))
    return [checkpoint for checkpoint, names in zip(kept, trained, strict=True) if names == trained[-1]]


@contextmanager
def _told_if_dropped(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """A run in training drops old checkpoints, also while they are read: that is no damage, and is told as what it is.

    Raises:
        CheckpointError: one was missed in the block, and is gone.
    """
    try:
        yield
    except CheckpointError as error:
        gone = next((checkpoint.path for checkpoint in checkpoints if not (checkpoint.path / SEAL).exists()), None)
        if gone is None:
            raise
        raise CheckpointError(
            f"{gone} is gone since this command began: a run in training keeps its newest and its best checkpoints "
            "alone; start the command again, or wait for the end of training"
        ) from error


def model_of(run_folder: Path, checkpoints: Sequence[Checkpoint], *, verify: bool = True) -> tuple[Any, Any]:
    """The model whose every weight is the mean of what it was at the checkpoints, summed in float64 from the masters.

    A weight that was frozen at one of them counts with its value in the base model.

    Args:
        run_folder: the run directory that they are of.
        checkpoints: one or more, from ``find_checkpoints``.
        verify: compare their files with the hashes; not where that has been done.

    Returns:
        The native model on the host, in the precision it was trained in, and its tokenizer.

    Raises:
        CheckpointError: one is damaged, or says that it was trained on other weights or tokens than the recipe's base
            model has.
    """
    with _told_if_dropped(checkpoints):
        for checkpoint in checkpoints if verify else ():
            checkpoint.verify()
    asr, tokenizer = _base_of(run_folder, checkpoints)
    with _told_if_dropped(checkpoints), ExitStack() as opened, torch.no_grad():
        readers = [opened.enter_context(StateReader(checkpoint.path)) for checkpoint in checkpoints]
        trained = [set(reader.parameters()) for reader in readers]
        parameters = dict(asr.named_parameters())
        for name in sorted(set().union(*trained)):
            if name not in parameters:
                raise CheckpointError(f"a checkpoint trains {name}, which this model does not have")
            parameter = parameters[name]
            total = torch.zeros(parameter.numel(), dtype=torch.float64)
            for reader, names in zip(readers, trained, strict=True):
                held = reader.read(name, "master", 0, parameter.numel()) if name in names else parameter.flatten()
                total += held.double()
            parameter.copy_((total / len(readers)).view_as(parameter))
    return asr, tokenizer


def _base_of(run_folder: Path, checkpoints: Sequence[Checkpoint]) -> tuple[Any, Any]:
    """The model that the checkpoints were trained from, as far as they say which it was, and its tokenizer."""
    last = checkpoints[-1]
    values = recipe_before(run_folder, last)
    if values is None:
        raise CheckpointError(f"{run_folder} has no recipe.json that can be read, and {last.path} names no model")
    recipe = recipe_from_dict(values, str(run_folder / "recipe.json"))
    recipe = replace(recipe, model=replace(recipe.model, path=_place_of(recipe.model.path, run_folder, last)))
    tokenizer = load_tokenizer(recipe.model.path)
    dtype = torch.bfloat16 if last.values.get("precision") == "bf16" else torch.float32
    asr = load_model(recipe.model, seed=recipe.seed, dtype=dtype)
    base = BaseModel.of(asr, tokenizer, recipe.model.path)
    for checkpoint in checkpoints:
        written = checkpoint.values.get("base_model")
        if written and (other := base.differs_from(BaseModel(**written))):
            raise CheckpointError(f"{checkpoint.path} was trained on another model than {base}: other {other}")
    return asr, tokenizer


def _place_of(path: str, run_folder: Path, last: Checkpoint) -> str:
    """Where the base model is that a recipe calls ``path``, which may count from another folder than this one."""
    written = last.values.get("base_model")
    if Path(path).is_dir() or not written or written["hub_commit"] is not None:
        return path
    places = (run_folder / "base", Path(written["path"]))  # of a run of the demo that was moved; as training found it
    if (there := next((place for place in places if place.is_dir()), None)) is None:
        raise CheckpointError(
            f"{last.path} was trained from a model in the folder {written['path']}, which is not here: bring it back, "
            "or go to the folder in which training was started"
        )
    return str(there)
