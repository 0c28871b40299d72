"""Why a clip is dropped. Every reason is counted in the drop table, and every dropped clip is listed with its own."""

from __future__ import annotations

import re

import numpy as np

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.sources import Row

FREE_SILENCE_S = 2.0
"""A short word may stand in this much silence before its clip counts as incompletely transcribed."""

_HEAD = 4096  # samples, of which one is not zero in nearly all recordings
_HEBREW_LETTER = re.compile("[\u05d0-\u05ea]")
_LONGER_S = 1.0  # of audio than its listing states, besides what rounding explains
_SHARE_HEARD = 0.8  # of the stated duration; rounding and mp3 padding stay far above, half a file far below


def text_fault(row: Row, transcript: str, options: PrepareOptions) -> str | None:
    """Reason to drop a row before its audio is looked at, or None."""
    flagged = [flag for flag in row.flags if flag in options.drop_flags]
    if flagged:
        return f"flagged {flagged[0]}"
    if not transcript:
        return "no text"
    if not _HEBREW_LETTER.search(transcript):
        return "no Hebrew letter"
    return None


def audio_fault(row: Row, samples: np.ndarray) -> tuple[str, str] | None:
    """Reason and detail to drop a row whose audio decoded, but not to what its text says; or None."""
    duration_s, stated_s = len(samples) / SAMPLE_RATE_HZ, row.stated_duration_s or 0.0
    if duration_s < _SHARE_HEARD * stated_s:
        return "truncated audio", f"{duration_s:.2f} s, and {stated_s:.2f} s are stated"
    if row.states_all and stated_s and duration_s > stated_s / _SHARE_HEARD + _LONGER_S:
        return "longer than stated", f"{duration_s:.2f} s, and the listing says {stated_s:.2f} s"
    return None if samples[:_HEAD].any() or samples.any() else ("silent audio", "")


def length_fault(duration_s: float, transcript: str, options: PrepareOptions) -> str | None:
    """Reason to drop a whole recording for its length, or None."""
    if duration_s < options.min_duration_s:
        return "too short"
    if duration_s > options.max_duration_s:
        return "too long"
    return pace_fault(duration_s, transcript, options)


def pace_fault(duration_s: float, transcript: str, options: PrepareOptions) -> str | None:
    """Reason to drop a clip whose text cannot be all that is said in it, or nothing but that; or None."""
    if len(transcript) < options.min_chars_per_s * (duration_s - FREE_SILENCE_S):
        return "too few characters per second"
    if len(transcript) > options.max_chars_per_s * duration_s:
        return "too many characters per second"
    return None
