"""What is said of a set of transcripts: rates in every normalizer, their intervals, and the same by kinds of clips.

``hebrew-asr eval``, ``score`` and ``compare`` and a model's card all count here, so that their numbers are one number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hebrew_asr.errors import DataError
from hebrew_asr.text.normalize import NORMALIZER_VERSION, Mode, normalize
from hebrew_asr.text.repetition import is_repetitive
from hebrew_asr.text.sets import sets_of
from hebrew_asr.text.wer import ErrorCounts, bootstrap_interval, paired_difference, per_clip_errors

SCORING_MODES: tuple[Mode, ...] = ("ivrit", "strict", "lenient")

_MAX_NAMED = 3
_DURATIONS_S = (2, 5, 10, 20, 30)
_LATIN, _DIGIT = re.compile(r"[A-Za-z]"), re.compile(r"\d")


@dataclass(frozen=True)
class Transcript:
    """What was said in a clip and what was heard, as written."""

    id: str
    reference: str
    hypothesis: str
    group: str = ""
    """Speaker, session or source; '' where it is not known."""
    source: str = ""
    """Set that it comes from; '' where there is but one, or its id says it."""
    duration_s: float | None = None
    note: str = ""
    """What the reader of its figures must know of it, such as that it was longer than the model learned."""


def figures(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """Rates of all clips, in each mode by its name, as plain JSON values.

    Raises:
        DataError: there are no clips.
    """
    if not transcripts:
        raise DataError("scoring: no clips; score at least one")
    groups = groups_of(transcripts)
    kinds = _kinds(transcripts)
    modes = {}
    for mode in SCORING_MODES:
        errors = errors_of(transcripts, mode)
        slices = {
            name: {value: rates([errors[i] for i in rows], _picked(groups, rows)) for value, rows in parts.items()}
            for name, parts in kinds.items()
        }
        modes[mode] = {**rates(errors, groups), "slices": slices}
    return {
        "normalizer_version": NORMALIZER_VERSION,
        "interval": interval_of(groups),
        "modes": modes,
        "invention": _invention(transcripts),
    }


def errors_of(transcripts: Sequence[Transcript], mode: Mode) -> list[ErrorCounts]:
    """Counts of each clip, in order."""
    return per_clip_errors([t.reference for t in transcripts], [t.hypothesis for t in transcripts], mode)


def groups_of(transcripts: Sequence[Transcript]) -> list[str] | None:
    """Each clip's group; None where some clip's is not known, or all are one, which tells of no spread."""
    return known_groups([clip.group for clip in transcripts])


def known_groups(groups: Sequence[str]) -> list[str] | None:
    """What the bootstrap may draw as wholes; None where some clip's group is not known, or all are one."""
    return list(groups) if all(groups) and len(set(groups)) > 1 else None


def interval_of(groups: Sequence[str] | None) -> str:
    """In words, what the bootstrap draws."""
    if groups is None:
        return "95 %, bootstrap over clips, for lack of groups; too narrow where clips share a speaker or source"
    return f"95 %, bootstrap over {len(set(groups))} groups"


def spread(errors: Sequence[ErrorCounts], groups: Sequence[str]) -> tuple[float, float, int | None]:
    """95 % interval of the WER, and how many groups the bootstrap draws; None where it draws clips."""
    known = known_groups(groups)
    return *bootstrap_interval(errors, known), len(set(known)) if known else None


def rates(errors: Sequence[ErrorCounts], groups: Sequence[str] | None) -> dict[str, Any]:
    """WER, CER and WIL, the intervals of the first two, and the counts they are of."""
    total = sum(errors, ErrorCounts())
    wer, cer = (bootstrap_interval(errors, groups, rate) for rate in ("wer", "cer"))
    return {
        "wer": total.wer,
        "wer_low_95": wer[0],
        "wer_high_95": wer[1],
        "cer": total.cer,
        "cer_low_95": cer[0],
        "cer_high_95": cer[1],
        "wil": total.wil,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "words": total.words,
        "clips": total.clips,
    }


def comparison(first: Sequence[Transcript], second: Sequence[Transcript]) -> dict[str, Any]:
    """Two systems on the same clips, in any order, mode by mode: their WER, the difference and its paired interval.

    Raises:
        DataError: a clip is of one system alone, or its reference differs.
    """
    ours, theirs = ({clip.id: clip for clip in side} for side in (first, second))
    for which, alone in (("first", ours.keys() - theirs), ("second", theirs.keys() - ours)):
        if alone:
            told = f"only the {which} has {len(alone)} of the clips ({first_named(sorted(alone))})"
            raise DataError(f"comparison: {told}; both must be of the same")
    if others := [clip.id for clip in first if clip.reference != theirs[clip.id].reference]:
        raise DataError(f"comparison: {len(others)} of the clips differ in their references ({first_named(others)})")
    second = [theirs[clip.id] for clip in first]
    groups = groups_of(first)
    modes = {}
    for mode in SCORING_MODES:
        errors = [errors_of(side, mode) for side in (first, second)]
        totals = [sum(side, ErrorCounts()) for side in errors]
        change = paired_difference(errors[0], errors[1], groups)
        modes[mode] = {
            "wer_first": totals[0].wer,
            "wer_second": totals[1].wer,
            "difference": change.wer,
            "difference_low_95": change.low,
            "difference_high_95": change.high,
            "share_of_resamples_second_better": change.share_better,
            "words": totals[0].words,
            "clips": totals[0].clips,
        }
    return {"normalizer_version": NORMALIZER_VERSION, "interval": interval_of(groups), "modes": modes}


def first_named(ids: Sequence[str]) -> str:
    """The first few of many, for a message."""
    return ", ".join(ids[:_MAX_NAMED]) + (", …" if len(ids) > _MAX_NAMED else "")


def _invention(transcripts: Sequence[Transcript]) -> dict[str, int]:
    """Signs that a model makes things up; a clip is silent if its reference is empty once normalized (strict)."""
    silent = [clip for clip in transcripts if not normalize(clip.reference, "strict")]
    return {
        "silent_clips": len(silent),
        "silent_clips_with_words": sum(bool(normalize(clip.hypothesis, "strict")) for clip in silent),
        "repetitive_hypotheses": sum(
            is_repetitive(clip.hypothesis) and not is_repetitive(clip.reference) for clip in transcripts
        ),
    }


def _kinds(transcripts: Sequence[Transcript]) -> dict[str, dict[str, list[int]]]:
    """Indices of clips by kind and value; a kind that all clips share one value of is left out."""
    sources = [clip.source for clip in transcripts]
    kinds = {
        "source": sources if any(sources) else sets_of([clip.id for clip in transcripts]) or sources,
        "duration": [_duration(clip.duration_s) for clip in transcripts],
        "code_switch": ["with Latin letters" if _LATIN.search(clip.reference) else "without" for clip in transcripts],
        "digits": ["with digits" if _DIGIT.search(clip.reference) else "without" for clip in transcripts],
    }
    found: dict[str, dict[str, list[int]]] = {}
    for name, values in kinds.items():
        parts: dict[str, list[int]] = {}
        for index, value in enumerate(values):
            parts.setdefault(value, []).append(index)
        if len(parts) > 1:
            found[name] = dict(sorted(parts.items(), key=_by_number))
    return found


def _by_number(part: tuple[str, list[int]]) -> tuple[float, str]:
    """Where a slice comes among its likes: those that begin with a number first, by it."""
    number = re.match(r"\d+", part[0])
    return (int(number[0]) if number else math.inf, part[0])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for low, high in pairwise((0, *_DURATIONS_S)):
        if seconds <= high:
            return f"{low} to {high} s"
    return f"over {_DURATIONS_S[-1]} s"


def _picked(groups: Sequence[str] | None, rows: Sequence[int]) -> list[str] | None:
    return None if groups is None else [groups[i] for i in rows]
