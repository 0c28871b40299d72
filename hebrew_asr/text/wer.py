"""Word and character error rates as counts that add up, so that a corpus score is edits over words, not a mean.

Intervals are bootstrapped over groups (speaker, session, source), and so is the difference of two systems.

Counts come from jiwer 4. Both sides are normalized first; the mode belongs beside every figure. An empty hypothesis
counts as deletions and an empty reference as insertions: no clip is dropped. Character counts include the single spaces
between words, as in jiwer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np

from hebrew_asr.errors import DataError
from hebrew_asr.text.normalize import Mode, normalize

_RESAMPLES = 1000
_INTERVAL = (0.025, 0.975)
_SEED = 0
"""So that the same clips have the same interval wherever it is told."""
_DRAWN_AT_ONCE = 1 << 14
"""Groups of all resamples that are summed at once: as many as lie in a processor's cache. The draws stay the same."""


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
        names = self.__slots__  # not astuple, which copies each number as it would copy a tree
        return ErrorCounts(*(getattr(self, name) + getattr(other, name) for name in names))

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

    @property
    def wil(self) -> float:
        """Word information lost (Morris, Maier and Green, 2004): 1 less the share of words that were right in the
        references times their share in the hypotheses. 0 where neither side has a word, 1 where only one has.
        """
        right = self.words - self.substitutions - self.deletions
        heard = right + self.substitutions + self.insertions
        if not self.words and not heard:
            return 0.0
        return 1 - right / max(self.words, 1) * right / max(heard, 1)


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


def errors_by(labels: Sequence[str], errors: Iterable[ErrorCounts]) -> dict[str, ErrorCounts]:
    """Sums of the counts of clips by their labels, these in the order of strings."""
    totals: dict[str, ErrorCounts] = dict.fromkeys(sorted(set(labels)), ErrorCounts())
    for label, of_clip in zip(labels, errors, strict=True):
        totals[label] += of_clip
    return totals


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
    per_clip: Sequence[ErrorCounts],
    groups: Sequence[str] | None,
    rate: Literal["wer", "cer"] = "wer",
) -> tuple[float, float]:
    """95 % percentile interval (low, high) of the corpus WER, or CER, over 1000 resamples.

    As in "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004), but whole groups
    (one name for each clip: source, speaker) are drawn with replacement, because clips of one source err together and
    drawing clips would make the interval too narrow. None takes each clip as its own group. With a single group both
    ends are the WER itself, which says nothing of its spread.
    Raises DataError for no clips or a wrong number of groups.
    """
    _check_bootstrap(len(per_clip), groups)
    edits, sizes = _by_group([_parts(clip, rate) for clip in per_clip], groups)
    drawn = _resampled(edits, sizes)
    return _percentiles(drawn[0] / np.maximum(drawn[1], 1))


@dataclass(frozen=True)
class Difference:
    """WER of a second system less that of a first, on the same clips."""

    wer: float
    low: float
    high: float
    share_better: float
    """Of the resamples, those in which the second has the lower WER."""


def paired_difference(
    first: Sequence[ErrorCounts], second: Sequence[ErrorCounts], groups: Sequence[str] | None
) -> Difference:
    """95 % percentile interval of the difference of two systems' WER; each resample takes the same groups of both.

    What is hard for one is hard for the other. So this interval is narrower than those of the two rates, and two rates
    may differ for certain though their own intervals overlap (Bisani and Ney, ICASSP 2004).

    Raises:
        DataError: no clips, or not as many of each.
    """
    if len(first) != len(second):
        raise DataError(f"comparison: {len(first)} clips of the first system but {len(second)} of the second")
    _check_bootstrap(len(first), groups)
    pairs = [(_parts(one, "wer"), _parts(other, "wer")) for one, other in zip(first, second, strict=True)]
    sums = _by_group([(*one, *other) for one, other in pairs], groups)
    drawn = _resampled(*sums)
    change = drawn[2] / np.maximum(drawn[3], 1) - drawn[0] / np.maximum(drawn[1], 1)
    whole = [sum(second, ErrorCounts()).wer, sum(first, ErrorCounts()).wer]
    return Difference(whole[0] - whole[1], *_percentiles(change), float((change < 0).mean()))


def _check_bootstrap(num_clips: int, groups: Sequence[str] | None) -> None:
    if not num_clips:
        raise DataError("bootstrap interval: no clips; score at least one")
    if groups is not None and len(groups) != num_clips:
        raise DataError(f"bootstrap interval: {num_clips} clips but {len(groups)} groups; give one for each clip")


def _parts(clip: ErrorCounts, rate: Literal["wer", "cer"]) -> tuple[int, int]:
    return (clip.word_edits, clip.words) if rate == "wer" else (clip.char_edits, clip.chars)


def _by_group(rows: Sequence[tuple[int, ...]], groups: Sequence[str] | None) -> np.ndarray:
    """Sums over the clips of each group, int64 (numbers in a row, groups)."""
    columns = np.array(rows, dtype=np.int64).T
    if groups is None:
        return columns
    names, index = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((len(columns), len(names)), dtype=np.int64)
    for column, total in zip(columns, sums, strict=True):
        np.add.at(total, index, column)
    return sums


def _resampled(*columns: np.ndarray) -> np.ndarray:
    """Sums over groups drawn with replacement, float64 (columns, resamples)."""
    rng, groups = np.random.default_rng(_SEED), columns[0].size
    at_once = max(1, _DRAWN_AT_ONCE // groups)
    sums = np.empty((len(columns), _RESAMPLES))
    for first in range(0, _RESAMPLES, at_once):
        drawn = rng.integers(groups, size=(min(at_once, _RESAMPLES - first), groups))
        for total, column in zip(sums, columns, strict=True):
            total[first : first + at_once] = column[drawn].sum(axis=1)
    return sums


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, _INTERVAL)
    return float(low), float(high)
