"""Cut a recording with timestamps into clips of trainable length, each with exactly the text that is heard in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hebrew_asr.text.timestamps import Segment, TimedText

PADDING_S = 0.2
"""Silence kept on either side of a clip, where there is some: last consonants die away after the stated end."""

LONGEST_PAUSE_S = 1.0
"""Segments further apart are not joined: the recognizer may have missed speech between them."""

CLOCK_TOLERANCE_S = 0.1
"""A last segment may be stated to end this much after the audio does (mp3 frames are 26 ms)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One clip of a longer recording."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A segment that no clip could take."""

    segment: Segment
    reason: str


def recut(timed: TimedText, duration_s: float, *, min_s: float, max_s: float) -> tuple[list[Cut], list[Unused]]:
    """Join neighboring segments into clips of ``min_s`` to ``max_s`` seconds.

    Drops as little speech as possible, then makes as few clips as possible. Clips do not overlap, hold whole segments
    only, and touch no audio of any other segment, nor audio that the text does not cover.

    Args:
        timed: segments in order, from ``parse_timestamps``.
        duration_s: length of the decoded audio.

    Returns:
        Clips in order of time, and the segments left over with the reason for each.
    """
    end_of_audio_s = duration_s if timed.unheard_from_s is None else min(duration_s, timed.unheard_from_s)
    segments, unused = [], []
    for segment in timed.segments:
        if not unused and segment.end_s <= end_of_audio_s + CLOCK_TOLERANCE_S and segment.start_s < end_of_audio_s:
            segments.append(replace(segment, end_s=min(segment.end_s, end_of_audio_s)))
        else:
            end_of_audio_s = min(end_of_audio_s, segment.start_s)  # the half of it that is there is no silence
            unused.append(Unused(segment, "timestamps past the end of the audio"))
    runs = _best_runs(segments, end_of_audio_s, min_s, max_s)
    cuts = [_cut(segments, first, last, end_of_audio_s, max_s) for first, last in runs]
    taken = {index for first, last in runs for index in range(first, last + 1)}
    for index, segment in enumerate(segments):
        if index not in taken:
            too_long = segment.end_s - segment.start_s > max_s
            unused.append(Unused(segment, segment.fault or f"segment too {'long' if too_long else 'short'}"))
    return cuts, unused


def _best_runs(segments: Sequence[Segment], end_s: float, min_s: float, max_s: float) -> list[tuple[int, int]]:
    """Ranges of segments to join, by dynamic programming over (dropped seconds, number of clips)."""
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # and where the run begins that a segment ends, or behind it
    for last, segment in enumerate(segments):
        choice = (best[last][0] + segment.end_s - segment.start_s, best[last][1], last + 1)
        for first in range(last, -1, -1):
            if segments[first].fault:
                break
            if first < last and segments[first + 1].start_s - segments[first].end_s > LONGEST_PAUSE_S:
                break
            if segment.end_s - segments[first].start_s > max_s:
                break
            cut = _cut(segments, first, last, end_s, max_s)
            if cut.end_s - cut.start_s >= min_s:
                dropped_s, clips, _ = best[first]
                if (round(dropped_s, 3), clips + 1) < (round(choice[0], 3), choice[1]):  # in any order of the sums
                    choice = (dropped_s, clips + 1, first)
        best.append(choice)
    runs, end = [], len(segments)
    while end:
        first, last = best[end][2], end - 1
        runs += [(first, last)] if first <= last else []
        end = min(first, last)
    return runs[::-1]


def _cut(segments: Sequence[Segment], first: int, last: int, end_s: float, max_s: float) -> Cut:
    """The clip of segments ``first..last`` with padding: at most half of each pause, and at most up to ``max_s``."""
    start_s, stop_s = segments[first].start_s, segments[last].end_s
    before_s = (start_s - segments[first - 1].end_s) / 2 if first else start_s
    after_s = (segments[last + 1].start_s - stop_s) / 2 if last + 1 < len(segments) else end_s - stop_s
    room_s = (max_s - (stop_s - start_s)) / 2
    text = " ".join(segment.text for segment in segments[first : last + 1])
    return Cut(start_s - min(PADDING_S, before_s, room_s), stop_s + min(PADDING_S, after_s, room_s), text)
