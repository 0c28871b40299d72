"""Position and history of a run, besides weights: small, and in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from hebrew_asr.checkpoints.sealed import Checkpoint
from hebrew_asr.errors import CheckpointError


@dataclass
class TrainState:
    """Position and history of a run. The order of clips and the learning rates follow from ``step`` alone."""

    step: int = 0
    """Optimizer steps done."""
    wer_of: str | None = None
    """What the rates below were measured on, and how; when that changes, they start anew."""
    wer_first: float | None = None
    """WER of the sample when it was first measured in this run."""
    wer_last: float | None = None
    """WER of the sample when it was last measured."""
    wer_step: int | None = None
    """Step at which that was."""
    best_wer: float | None = None
    """Lowest WER of the sample."""
    best_step: int | None = None
    """Step at which it was measured."""
    full: dict[str, Any] | None = None
    """The last evaluation of the whole split: ``step``, ``wer``, ``cer``, ``clips``."""
    head_row_norms: dict[str, float | None] | None = None
    """Before the first step, as :meth:`hebrew_asr.engine.engine.TrainEngine.head_row_norms` gives them."""
    evaluated_step: int = -1
    """Step of the last evaluation: one that was cut short by a stop is made up for on resuming."""
    phase_switch_step: int | None = None
    """Step after which the second phase began."""
    seconds: float = 0.0
    """Wall time of all sessions of this run up to the last checkpoint."""
    write_s: float | None = None
    """Seconds that the checkpoint before took to write."""
    max_micro_batch: int | None = None
    """Most clips in a micro-batch since device memory ran out; None while the profile's own figure holds."""
    unreadable_clips: list[str] = field(default_factory=list)
    """Ids of the training clips that could not be decoded, since the run began: ``faults.max_unreadable_share`` limits
    how many there may be."""
    tracker_id: str | None = None
    """Run id of the experiment tracker, so that a resumed run continues its curves."""

    fallbacks: list[dict[str, Any]] = field(default_factory=list)
    """Slower ways that any rank took, in any session: step, name, reason, ranks."""

    def measured(self, wer: float, of: str) -> None:
        """Note the sample's WER at this step; ``of`` says what was measured and how."""
        if of != self.wer_of:  # other clips or settings, on a resume: what came before cannot be compared
            self.wer_of, self.wer_first, self.best_wer = of, None, None
        self.wer_first = wer if self.wer_first is None else self.wer_first
        self.wer_last, self.wer_step = wer, self.step
        if self.best_wer is None or wer <= self.best_wer:
            self.best_wer, self.best_step = wer, self.step

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TrainState:
        """The state that a checkpoint holds.

        Raises:
            CheckpointError: it is not of this step, or holds what this version does not know.
        """
        try:
            state = cls(**checkpoint.values["state"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{checkpoint.path} holds no state that this version can read: {error}") from error
        if state.step != checkpoint.step:
            raise CheckpointError(f"{checkpoint.path} holds the state of step {state.step}; was it renamed?")
        return state

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
