"""What a run directory holds to go on from, in whatever state it was left or copied."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hebrew_asr.checkpoints.sealed import Checkpoint, Damaged, newest_whole, no_checkpoint, set_aside, survey
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import CheckpointError
from hebrew_asr.files import from_json
from hebrew_asr.report.records import FaultRecord


@dataclass(frozen=True)
class Resumable:
    """Where a run can go on."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    """Complete ones, oldest first. Their files are not hashed yet: ``settle`` does, when the ranks have met."""
    damaged: list[Damaged] = field(default_factory=list)
    """Newer ones that are of no use."""

    @property
    def newest(self) -> Checkpoint | None:
        """None where the run starts from step 0."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def faults(self) -> list[FaultRecord]:
        """A record of the checkpoints that could not be used, if there are any."""
        if not self.damaged:
            return []
        step, reasons = self.checkpoints[-1].step, [item.reason for item in self.damaged]
        return [FaultRecord(step=step, kind="damaged checkpoint", reasons=reasons)]

    def settle(self, ranks: Ranks) -> Resumable:
        """Only checkpoints that are as they were written, the same on every rank; collective.

        Damaged checkpoints newer than the one to go on from are renamed, so that a run can go on unattended.

        Raises:
            CheckpointError: there are checkpoints, and none is whole.
        """
        if not ranks.broadcast(bool(self.checkpoints)):
            return Resumable()
        newest, damaged = newest_whole(self.checkpoints, ranks)
        damaged += [item for item in ranks.broadcast(self.damaged) if item.path.name > newest.path.name]
        if ranks.is_main:
            damaged = [replace(item, reason=_kept_aside(item)) for item in damaged]
        return Resumable([newest], ranks.broadcast(damaged))


def _kept_aside(item: Damaged) -> str:
    """Rename a damaged checkpoint; returns why it is of no use, and where it is."""
    try:
        return f"{item.reason}; kept as {set_aside(item.path).name}"
    except OSError as error:
        return f"{item.reason}; it could not be renamed ({error.strerror})"


def is_used(folder: Path) -> bool:
    """Whether a run has written into a directory, however little of it is left."""
    return any((folder / name).exists() for name in ("recipe.json", "metrics.jsonl", "checkpoints"))


def find_resumable(folder: Path) -> Resumable:
    """The checkpoints in the run directory ``folder``.

    Raises:
        CheckpointError: there are checkpoints, but none that says what it is: a run must not start over unasked.
    """
    checkpoints, unreadable = survey(folder / "checkpoints")
    if not checkpoints:
        known = [item.path for item in unreadable]
        unmarked = [path for path in (folder / "checkpoints").glob("step-*") if path not in known]
        unreadable += [
            Damaged(path, f"{path} {'was found damaged' if '.damaged' in path.name else 'has no COMPLETE.json'}")
            for path in unmarked
        ]
        if unreadable:
            raise CheckpointError(no_checkpoint(unreadable))
        if _had_checkpoints(folder / "metrics.jsonl"):
            raise CheckpointError(
                f"{folder / 'metrics.jsonl'} tells of checkpoints, and {folder / 'checkpoints'} holds none: bring one "
                "back, or give --run another name to start anew"
            )
    return Resumable(checkpoints, unreadable)


def _had_checkpoints(metrics: Path) -> bool:
    """Whether a run's records tell that a checkpoint was sealed; one that was stopped before may start over."""
    try:
        return re.search(rb'"event": ?"checkpoint"', metrics.read_bytes()) is not None
    except OSError:
        return False


def recipe_before(folder: Path, checkpoint: Checkpoint | None = None) -> dict[str, Any] | None:
    """The recipe that made a run, as JSON values: by its checkpoint, else by ``recipe.json``; None if neither says it.

    A checkpoint of an older version holds the recipe's name alone.
    """
    recipe = None if checkpoint is None else checkpoint.values.get("recipe")
    if not isinstance(recipe, dict):
        try:
            recipe = from_json((folder / "recipe.json").read_bytes())
        except (OSError, ValueError):
            return None
    return recipe if isinstance(recipe, dict) else None
