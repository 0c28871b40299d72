"""Word and character error rates as counts that add up, so that a corpus score is edits over words, not a mean.

Counts come from jiwer 4. Both sides are normalized first; the mode belongs beside every figure. An empty hypothesis
counts as deletions and an empty reference as insertions: no clip is dropped. Character counts include the single spaces
between words, as in jiwer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import jiwer
import numpy as np

from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.text.normalize import Mode, normalize

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Edits of hypotheses against references, and the sizes of the references. All are plain sums over clips."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0
    """Words of the references."""
    char_edits: int = 0
    chars: int = 0
    """Characters of the references, spaces between words included."""
    clips: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def word_edits(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word edits per reference word; may exceed 1.

        Without any reference word it is the number of insertions (0.0 if there are none), as in jiwer 4: finite, so
        that it can be written as JSON, and never a silent 0 for words made up on silence.
        """
        return self.word_edits / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character edits per reference character; without any, the number of inserted characters."""
        return self.char_edits / max(self.chars, 1)

    def to_list(self) -> list[int]:
        """The counts in field order, to be summed over ranks."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, counts: Iterable[int | float]) -> ErrorCounts:
        """The inverse of ``to_list``; takes floats too, since a reduced tensor may hold them."""
        return cls(*(int(count) for count in counts))


def per_clip_errors(references: Sequence[str], hypotheses: Sequence[str], mode: Mode = "strict") -> list[ErrorCounts]:
    """Counts of each clip, in order.

    Raises DataError if the two sequences differ in length, UsageError for an unknown mode.
    """
    if len(references) != len(hypotheses):
        raise DataError(
            f"scoring: {len(references)} references but {len(hypotheses)} hypotheses; give one hypothesis, "
            "empty if need be, for each reference"
        )
    return [
        _clip_errors(normalize(reference, mode), normalize(hypothesis, mode))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def count_errors(references: Sequence[str], hypotheses: Sequence[str], mode: Mode = "strict") -> ErrorCounts:
    """Corpus counts: the sum of :func:`per_clip_errors`, which says what is raised."""
    return sum(per_clip_errors(references, hypotheses, mode), start=ErrorCounts())


def _clip_errors(reference: str, hypothesis: str) -> ErrorCounts:
    words = jiwer.process_words([reference], [hypothesis])
    chars = jiwer.process_characters([reference], [hypothesis])
    return ErrorCounts(
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        words=words.hits + words.substitutions + words.deletions,
        char_edits=chars.substitutions + chars.deletions + chars.insertions,
        chars=chars.hits + chars.substitutions + chars.deletions,
        clips=1,
    )


def bootstrap_interval(
    per_clip: Sequence[ErrorCounts], groups: Sequence[str] | None, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (low, high) of the corpus WER over 1000 resamples.

    As in "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004), but whole groups
    (one name for each clip: source, speaker) are drawn with replacement, because clips of one source err together and
    drawing clips would make the interval too narrow. None takes each clip as its own group. With a single group both
    ends are the WER itself, which says nothing of its spread.
    Raises DataError for no clips or a wrong number of groups, UsageError for a confidence outside (0, 1).
    """
    if not per_clip:
        raise DataError("bootstrap interval: no clips; score at least one")
    if groups is not None and len(groups) != len(per_clip):
        raise DataError(f"bootstrap interval: {len(per_clip)} clips but {len(groups)} groups; give one for each clip")
    if not 0 < confidence < 1:
        raise UsageError(f"bootstrap interval: confidence {confidence} is outside (0, 1); 0.95 is usual")
    edits, words = _totals_by_group(per_clip, groups)
    rng = np.random.default_rng(seed)
    rates = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = rng.integers(len(edits), size=len(edits))
        rates[resample] = edits[drawn].sum() / max(words[drawn].sum(), 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def _totals_by_group(per_clip: Sequence[ErrorCounts], groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Word edits and reference words of each group, two int64 arrays of shape (groups,)."""
    edits = np.array([clip.word_edits for clip in per_clip])
    words = np.array([clip.words for clip in per_clip])
    if groups is None:
        return edits, words
    names, index = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((2, len(names)), dtype=np.int64)
    np.add.at(sums[0], index, edits)
    np.add.at(sums[1], index, words)
    return sums[0], sums[1]
