"""What a run knows about itself besides weights: small, explicit, and in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Position and history of a run. The order of clips and the learning rates follow from ``step`` alone."""

    step: int = 0
    """Optimizer steps done."""
    wer_first: float | None = None
    """First WER measured in this run, and …"""
    wer_last: float | None = None
    """… the last, both on the eval sample or split."""
    best_wer: float | None = None
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
    """Ids of the training clips that could not be decoded; the recipe bears so many in the whole run."""
    tracker_id: str | None = None
    """Run id of the experiment tracker, so that a resumed run continues its curves."""

    fallbacks: list[dict[str, Any]] = field(default_factory=list)
    """Slower ways that any rank took in any session: step, name, reason, ranks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
