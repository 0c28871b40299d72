"""What a learning-rate range test shows: where the loss falls fastest, where it is lowest, where it diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hebrew_asr.errors import TrainingFault

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""Times the lowest loss, as fastai and others stop."""
_SETTLING = 5
"""Steps whose smoothed loss is that of few batches, so says little of the rates."""


@dataclass(frozen=True)
class LrCurve:
    """Loss against the factor of the recipe's rates."""

    factors: list[float]
    smoothed: list[float]
    """Losses, averaged exponentially without the bias of the start."""
    steepest: float | None
    """Factor at which the loss falls fastest; None where it does not fall."""
    lowest: float
    """Factor at which it is lowest."""
    diverged: bool
    """Whether the test ended because the loss rose to four times its lowest, or was not finite."""

    @property
    def suggested(self) -> float | None:
        """The usual choice: where the loss falls fastest, but not above a tenth of where it is lowest."""
        return None if self.steepest is None else min(self.steepest, self.lowest / 10 if self.diverged else math.inf)


def lr_curve(factors: Sequence[float], losses: Sequence[float | None]) -> LrCurve:
    """Read a test. ``losses``: by step; None where it was not finite.

    Raises:
        TrainingFault: there are no finite losses to read.
    """
    finite = [(factor, loss) for factor, loss in zip(factors, losses, strict=True) if loss is not None]
    if not finite:
        raise TrainingFault(
            "no step had a finite loss, not even the first, which no learning rate has touched: the base model or the "
            "data is broken. See what `hebrew-asr eval` hears with the one, and `hebrew-asr audit` says of the other"
        )
    smoothed = _smoothed([loss for _, loss in finite])
    kept = [factor for factor, _ in finite]
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    slopes = {
        index: (smoothed[index + 1] - smoothed[index - 1]) / (math.log(kept[index + 1]) - math.log(kept[index - 1]))
        for index in range(_SETTLING, lowest)
    }
    steepest = min(slopes, key=slopes.__getitem__, default=None)
    falls = steepest is not None and slopes[steepest] < 0
    diverged = len(finite) < len(losses) or has_diverged([loss for _, loss in finite])
    return LrCurve(kept, smoothed, kept[steepest] if falls and steepest is not None else None, kept[lowest], diverged)


def only_finite(losses: Sequence[float]) -> list[float | None]:
    """Losses as JSON and :func:`lr_curve` take them: None where they are not finite."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or the smoothed one is so high that rates are too."""
    if not losses or not math.isfinite(losses[-1]):
        return bool(losses)
    smoothed = _smoothed(losses)
    return len(losses) > _SETTLING and smoothed[-1] > _DIVERGED * min(smoothed)


def _smoothed(losses: Sequence[float]) -> list[float]:
    mean, found = 0.0, []
    for number, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**number))
    return found
