"""Disk space: what a run will write, and whether it fits on the disk of the run directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hebrew_asr.config.recipe import Recipe
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.files import nearest_existing

if TYPE_CHECKING:
    from hebrew_asr.checkpoints.sealed import Checkpoint

_MIB = 1 << 20
MASTER_AND_MOMENTS_BYTES = 3 * 4
"""Of a weight that trains, in a checkpoint: fp32."""


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run will write; metrics and samples are small beside them."""

    checkpoint: int
    """One checkpoint of the phase that trains most: masters and two moments in fp32."""
    kept: int
    """Checkpoints kept at the most."""
    model: int
    """The final model."""

    @property
    def total(self) -> int:
        """Checkpoints kept, one being written, and the final model."""
        return (self.kept + 1) * self.checkpoint + self.model


def disk_need(recipe: Recipe, trainable: Iterable[int], model: int) -> DiskNeed:
    """Bytes that a run will write.

    Args:
        recipe: says how many checkpoints are kept.
        trainable: weights that train, of each phase.
        model: bytes of the whole model.
    """
    return DiskNeed(
        MASTER_AND_MOMENTS_BYTES * max(trainable), recipe.checkpoints.keep_last + recipe.checkpoints.keep_best, model
    )


def require_disk_space(need: DiskNeed, folder: Path, present: list[Checkpoint], *, is_trained: bool) -> str | None:
    """Compare what a run will write into ``folder`` with what is free there.

    Args:
        need: of the whole run.
        folder: the run directory, which need not exist yet.
        present: its checkpoints, oldest first; old ones are deleted to make room for new ones.
        is_trained: whether only the model is still to be written.

    Returns:
        A warning where room may run short; None where all will fit.

    Raises:
        EnvironmentProblem: there is no room for a single checkpoint and the model.
    """
    sizes = [sum(seal.get("size", 0) for seal in checkpoint.files.values()) for checkpoint in present]
    free = shutil.disk_usage(nearest_existing(folder)).free
    least = need.model if is_trained else need.checkpoint + need.model
    figures = (
        f"{need.checkpoint / _MIB:,.1f} MiB per checkpoint, {need.model / _MIB:,.1f} MiB for the final model, "
        f"{need.total / _MIB:,.1f} MiB in all; {free / _MIB:,.1f} MiB are free in {folder}"
    )
    if free + sum(sizes[:-1]) < least:
        raise EnvironmentProblem(
            f"no disk space for one checkpoint and the model: {figures}. Make room, or give --run a folder on another "
            "disk"
        )
    if not is_trained and free + sum(sizes) < need.total:
        return f"warning: the disk may fill up, which will cost checkpoints: {figures}"
    return None
