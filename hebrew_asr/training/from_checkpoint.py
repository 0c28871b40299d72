"""A model as it was at a checkpoint: the base model with the trained weights of that step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hebrew_asr.config.recipe import recipe_from_dict
from hebrew_asr.engine.optimizer_state import StateReader
from hebrew_asr.engine.sealed import Checkpoint, find_checkpoints, ranked_by_wer
from hebrew_asr.errors import CheckpointError
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
    reader = StateReader(checkpoint.path)
    reader.load_weights(dict(asr.named_parameters()))
    reader.close()
    return asr, tokenizer
