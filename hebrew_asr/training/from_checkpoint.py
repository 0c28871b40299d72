"""A model as it was at a checkpoint: the base model with the trained weights of that step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from hebrew_asr.config.recipe import recipe_from_dict
from hebrew_asr.engine.optimizer_state import StateReader
from hebrew_asr.engine.sealed import Checkpoint, find_checkpoints, ranked_by_wer
from hebrew_asr.errors import CheckpointError, UsageError
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.training.identity import BaseModel
from hebrew_asr.training.resuming import recipe_before


def best_checkpoint(run_folder: Path) -> Checkpoint:
    """The kept checkpoint of the lowest WER, among those measured as the newest measured one was.

    Raises:
        CheckpointError: no checkpoint with a WER is kept.
    """
    ranked = ranked_by_wer(find_checkpoints(run_folder / "checkpoints"))
    if not ranked:
        raise CheckpointError(f"no checkpoint in {run_folder / 'checkpoints'} was measured")
    return ranked[-1][0]


def model_from_checkpoint(run_folder: Path, checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The native model on the host, in the precision it was trained in, and its tokenizer; ``save_native`` writes them.

    Args:
        run_folder: the run directory that ``checkpoint`` is of.
        checkpoint: from ``find_checkpoints`` or ``best_checkpoint``; it is verified.

    Raises:
        CheckpointError: the checkpoint is damaged, or the recipe's base model is not the one that was trained on.
    """
    asr, tokenizer = _base_of(run_folder, checkpoint)
    reader = StateReader(checkpoint.path)
    reader.load_weights(dict(asr.named_parameters()))
    reader.close()
    return asr, tokenizer


def average_of(run_folder: Path, checkpoints: Sequence[Checkpoint]) -> tuple[Any, Any]:
    """The model whose every weight is the mean of what it was at the checkpoints, summed in float64 from the masters.

    A weight that was frozen at one of them counts with its value in the base model.

    Raises:
        UsageError: fewer than two checkpoints.
        CheckpointError: as :func:`model_from_checkpoint`, for any of them, or they are of different base models.
    """
    if len(checkpoints) < 2:
        raise UsageError(f"{run_folder} has {len(checkpoints)} checkpoints to average; it takes two or more")
    asr, tokenizer = _base_of(run_folder, checkpoints[-1])
    for checkpoint in checkpoints[:-1]:
        checkpoint.verify()
        if checkpoint.values.get("base_model") != checkpoints[-1].values.get("base_model"):
            raise CheckpointError(f"{checkpoint.path} and {checkpoints[-1].path} were trained on different base models")
    with ExitStack() as opened, torch.no_grad():
        readers = [StateReader(checkpoint.path) for checkpoint in checkpoints]
        for reader in readers:
            opened.callback(reader.close)
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


def _base_of(run_folder: Path, checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The model that a verified checkpoint was trained from, and its tokenizer."""
    checkpoint.verify()
    values = recipe_before(run_folder, checkpoint)
    if values is None:
        raise CheckpointError(f"{run_folder} has no recipe.json that can be read, and {checkpoint.path} names no model")
    recipe = recipe_from_dict(values, str(run_folder / "recipe.json"))
    tokenizer = load_tokenizer(recipe.model.path)
    dtype = torch.bfloat16 if checkpoint.values.get("precision") == "bf16" else torch.float32
    asr = load_model(recipe.model, seed=recipe.seed, dtype=dtype)
    written = checkpoint.values.get("base_model")
    other = BaseModel.of(asr, tokenizer, recipe.model.path).differs_from(BaseModel(**written)) if written else None
    if other is not None:
        raise CheckpointError(f"{checkpoint.path} was trained on another model than {recipe.model.path}: other {other}")
    return asr, tokenizer
