"""Why a clip is dropped. Every reason is counted in the drop table, and every dropped clip is listed with its own."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import soundfile

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, needs_torchcodec
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.sources import Row

FREE_SILENCE_S = 2.0
"""A short word may stand in this much silence before its clip counts as incompletely transcribed."""

_HEBREW_LETTER = re.compile("[\u05d0-\u05ea]")
_TAG_WITHIN = 4096  # bytes; the tag is in the first mp3 frame
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


def audio_fault(row: Row, content: bytes, samples: np.ndarray) -> str | None:
    """Reason to drop a row whose audio decoded, but not to what its text says; or None."""
    duration_s = len(samples) / SAMPLE_RATE_HZ
    if is_cut_off(content, duration_s) or duration_s < _SHARE_HEARD * (row.stated_duration_s or 0):
        return "truncated audio"
    if not samples.any():
        return "silent audio"
    return None


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


def is_cut_off(content: bytes, decoded_s: float) -> bool:
    """Whether an audio file ends before its own headers say. libsndfile decodes the rest of such a file without a word.

    A truncated flac does not decode at all. An mp3 states its length in a Xing (or, at a constant rate, Info) tag.
    """
    if content[:4] == b"RIFF":
        (size,) = struct.unpack_from("<I", content, 4)
        return size not in (0, 0xFFFFFFFF) and size + 8 > len(content) + 1  # 0 and -1 are written by streaming encoders
    if content[:4] == b"OggS":
        last_page = content.rfind(b"OggS")
        return len(content) < last_page + 6 or not content[last_page + 5] & 4  # RFC 3533: the end-of-stream bit
    if needs_torchcodec(content):
        return False  # noticed while decoding
    tagged = b"Xing" in content[:_TAG_WITHIN] or b"Info" in content[:_TAG_WITHIN]
    return tagged and decoded_s < _SHARE_HEARD * soundfile.info(io.BytesIO(content)).duration
