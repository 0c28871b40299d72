"""Whisper timestamp tokens: ``<|0.00|> text<|2.40|><|2.40|> more text<|5.12|>``, as in the *-whisper-training sets.

A slice that ends while somebody still speaks carries a lone start time, ``…<|27.10|><|28.30|>``: from 28.30 s on there
is speech that its text does not hold (``create_dataset.py`` of ivrit-ai/asr-training). Deleting the tokens without
cutting the audio there would train the model to stay silent while hearing speech.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge

OVERLAP_TOLERANCE_S = 0.05
"""Times are rounded to 0.02 s, so neighbors may seem to overlap by a little."""

_TOKEN = re.compile(r"<\|(\d+(?:\.\d+)?)\|>")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of audio and exactly what is said in it."""

    start_s: float
    end_s: float
    text: str
    fault: str = ""
    """Why it can be in no clip, nor any clip reach across it: nobody wrote down what is heard there."""


@dataclass(frozen=True, slots=True)
class TimedText:
    """A transcript with its times."""

    segments: tuple[Segment, ...]
    unheard_from_s: float | None
    """Where audio begins that the text does not cover; None when the text runs to the end."""


def has_timestamps(text: str) -> bool:
    """Whether the text holds at least one timestamp token."""
    return _TOKEN.search(text) is not None


def parse_timestamps(text: str) -> TimedText:
    """Split a transcript at its tokens.

    Raises:
        ValueError: text stands before the first token, times run backwards, or a segment has no length.
    """
    pieces = _TOKEN.split(text)  # text, time, text, time, …, text
    if pieces[0].strip():
        raise ValueError(f"text before the first timestamp: {pieces[0].strip()[:40]!r}")
    segments: list[Segment] = []
    open_since: float | None = None
    pending = ""
    for time, piece in zip(map(float, pieces[1::2]), map(str.strip, pieces[2::2]), strict=True):
        if open_since is None:
            open_since = time
        elif pending:
            segments.append(_close(segments, open_since, time, pending))
            open_since = None
        else:
            open_since = time  # two times with nothing between: the first one opened an empty segment
        if piece and open_since is None:
            open_since = time  # one token between two texts ends the one and starts the other
        pending = piece
    # An unclosed segment leaves nothing to say where its text ends, so it counts as not covered either.
    return TimedText(tuple(segments), open_since)


def from_cues(cues: Iterable[Segment]) -> TimedText:
    """A timed text of subtitles or intervals, which come in any order and overlap.

    Where cues overlap by more than rounding, no cut parts their words: they become one segment, in order of their
    starts. A cue that was listed before, word for word at the same time, is left out. One that has no length, or ends
    before it starts, is a segment with a fault, behind the one that lasts at its start; so is one of a time before 0.
    """
    segments: list[Segment] = []
    words: list[list[str]] = []  # of each: joined once, since one cue may lie under all others
    timeless: list[Segment] = []
    for cue in sorted(map(_in_recording, dict.fromkeys(cues)), key=_times):
        last = segments[-1] if segments else None
        if cue.end_s <= cue.start_s:
            timeless.append(cue)
        elif last is None or (cue.start_s >= last.end_s - OVERLAP_TOLERANCE_S and cue.end_s > last.end_s):
            segments.append(cue if last is None else replace(cue, start_s=max(cue.start_s, last.end_s)))
            words.append([cue.text])
        else:
            segments[-1] = replace(last, end_s=max(last.end_s, cue.end_s), fault=last.fault or cue.fault)
            words[-1].append(cue.text)
    segments = [replace(part, text=" ".join(filter(None, said))) for part, said in zip(segments, words, strict=True)]
    return TimedText((*merge(segments, map(partial(_without_length, segments), timeless), key=_times),), None)


def _in_recording(cue: Segment) -> Segment:
    fault = cue.fault or ("begins before the recording" if cue.start_s < -OVERLAP_TOLERANCE_S else "")
    return cue if cue.start_s >= 0 else replace(cue, start_s=0.0, end_s=max(cue.end_s, 0.0), fault=fault)


def _times(segment: Segment) -> tuple[float, float]:
    return segment.start_s, segment.end_s


def _without_length(segments: list[Segment], cue: Segment) -> Segment:
    """A faulty segment of no length, where none of ``segments`` is cut by it."""
    before = bisect_left(segments, cue.start_s, key=lambda segment: segment.start_s) - 1
    at_s = max(cue.start_s, segments[before].end_s) if before >= 0 else cue.start_s
    fault = cue.fault or ("has no length" if cue.end_s == cue.start_s else "ends before it starts")
    return Segment(at_s, at_s, cue.text, fault)


def _close(before: list[Segment], start_s: float, end_s: float, text: str) -> Segment:
    if before and start_s < before[-1].end_s:
        if start_s < before[-1].end_s - OVERLAP_TOLERANCE_S:
            raise ValueError(f"segment at {start_s} s starts before the last one ends at {before[-1].end_s} s")
        start_s = before[-1].end_s
    if end_s <= start_s:
        raise ValueError(f"segment ends at {end_s} s, not after its start at {start_s} s")
    return Segment(start_s, end_s, text)
