"""Which clips an epoch takes where data sets have shares of their own: a pure function of (seed, epoch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

import numpy as np

from hebrew_asr.config.recipe import Recipe
from hebrew_asr.data.clips import Clip, Clips
from hebrew_asr.errors import UsageError, did_you_mean
from hebrew_asr.text.sets import set_of

_MOST_SETS = 1000
_CLIPS_AT_ONCE = 4096


class Mixture:
    """Clips of each epoch of a recipe with weights or temperatures."""

    def __init__(self, clips: Clips, recipe: Recipe):
        """Raises UsageError where a phase weighs data sets that are not there, or there are too many to be any."""
        numbers: dict[str, int] = {}
        found = np.empty(len(clips), np.int16)
        for at, part in enumerate(clips.parts(_CLIPS_AT_ONCE)):
            sets = [numbers.setdefault(set_of(identity), len(numbers)) for identity in part.column("id").to_pylist()]
            if len(numbers) > _MOST_SETS:
                raise UsageError(
                    f"data.weights and data.temperature go by the ids of clips up to the first slash, of which there "
                    f"are more than {_MOST_SETS:,} here, {', '.join([*numbers][:3])} among them: such ids name no sets"
                )
            found[at * _CLIPS_AT_ONCE :][: len(sets)] = sets
        self._names, self._seed = sorted(numbers), recipe.seed
        self._set_of_clip = np.argsort(np.argsort([*numbers]))[found].astype(np.int16)
        self._sizes = np.bincount(self._set_of_clip, minlength=len(numbers))
        self._phases = recipe.phases
        self._starts = [0, *accumulate(phase.epochs for phase in recipe.phases)]
        self._counts = [self._counts_of(phase.name, recipe) for phase in recipe.phases]

    @classmethod
    def of(cls, clips: Clips, recipe: Recipe) -> Mixture | None:
        """None where no phase has weights or a temperature."""
        return cls(clips, recipe) if recipe.data.weights or recipe.data.temperature else None

    def _counts_of(self, phase: str, recipe: Recipe) -> np.ndarray | None:
        """(sets,) clips of an epoch of the phase, as many as the set has in all; None where each comes once."""
        weights, temperature = recipe.data.weights.get(phase), recipe.data.temperature.get(phase, 1.0)
        if weights is None and temperature == 1:
            return None
        unknown = [name for name in weights or {} if name not in self._names]
        if unknown:
            raise UsageError(
                f"data.weights.{phase}: no training clip is of {unknown[0]}{did_you_mean(unknown[0], self._names)}; "
                f"the data sets here are {', '.join(self._names[:20])}"
            )
        weighs = self._sizes ** (1 / temperature) if weights is None else [weights.get(name, 0) for name in self._names]
        ends = np.cumsum(weighs) / np.sum(weighs) * len(self._set_of_clip)
        return np.diff(np.rint(ends).astype(np.int64), prepend=0)

    def shares(self, phase: int) -> dict[str, float]:
        """Of each data set in the clips of an epoch of phase number ``phase``; by its name."""
        counts = self._counts[phase]
        counts = self._sizes if counts is None else counts
        return dict(zip(self._names, (counts / len(self._set_of_clip)).tolist(), strict=True))

    def told(self, phase: int) -> str:
        """The shares, and how often an epoch goes through each data set."""
        of_sets = zip(self.shares(phase).items(), self._sizes.tolist(), strict=True)
        rounds = ((name, share, share * len(self._set_of_clip) / size) for (name, share), size in of_sets)
        return "an epoch is " + ", ".join(f"{share:.1%} {name} ({times:.2f} x)" for name, share, times in rounds)

    def clips(self, epoch: int) -> np.ndarray:
        """(clips,) uint32, the clips of an epoch (from 0), in no order; those of an epoch after the last as of it."""
        phase = min(sum(epoch >= start for start in self._starts) - 1, len(self._phases) - 1)
        counts = self._counts[phase]
        if counts is None:
            return np.arange(len(self._set_of_clip), dtype=np.uint32)
        before = epoch - self._starts[phase]
        own = [self._stretch(number, phase, before * count, count) for number, count in enumerate(counts.tolist())]
        return np.concatenate(own)

    def _stretch(self, number: int, phase: int, start: int, count: int) -> np.ndarray:
        """A stretch of the rounds through a data set, each of which has all of its clips in an order of its own."""
        clips, size = np.flatnonzero(self._set_of_clip == number).astype(np.uint32), int(self._sizes[number])
        rounds = range(start // size, -(-(start + count) // size))
        drawn = [np.random.default_rng((self._seed, phase, number, at)).permutation(clips) for at in rounds]
        first = start - rounds.start * size
        return np.concatenate([clips[:0], *drawn])[first : first + count]


def counts_by_set(clips: Iterable[Clip]) -> dict[str, int]:
    """How many clips are of each data set, by its name."""
    return dict(sorted(Counter(set_of(clip.id) for clip in clips).items()))
