"""Measure the sound of a clip for an audit: decode it, and say how long, how loud and how full of speech it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from hebrew_asr.audio.decode import LONGEST_S, SAMPLE_RATE_HZ, joined, to_int16
from hebrew_asr.audio.decode import Sound as Decoded
from hebrew_asr.audio.source import AudioError, Source
from hebrew_asr.errors import EnvironmentProblem, first_line

_FRAME = SAMPLE_RATE_HZ // 50  # 20 ms
_SPEECH_BELOW_LOUDEST_DB = 35.0
_SPEECH_ABOVE_DB = -60.0
_FLOOR_DB = -100.0
_FULL_SCALE = 0.999
_END_FRAMES = 3
_LOUD_BELOW_LOUDEST_DB = 15.0


@dataclass(frozen=True, slots=True)
class Sound:
    """What the audio of one clip is like."""

    fault: str = ""
    """Why it could not be decoded; all else is 0 then."""
    duration_s: float = 0.0
    tolerance_s: float = 0.0
    """By how much ``duration_s`` may differ from what the manifest says."""
    fingerprint: str = ""
    """MD5 of the 16 kHz 16-bit samples, as in preparation."""
    rate_hz: int = 0
    channels: int = 0
    level_db: float = _FLOOR_DB
    """Root mean square, relative to full scale."""
    clipped: float = 0.0
    """Share of samples at full scale."""
    peak: float = 0.0
    """Largest sample; beyond 1 it is clipped when it becomes 16 bits."""
    canceled: bool = False
    """Its channels cancel each other, so that one was taken alone."""
    ends_loud: bool = False
    """The last 60 ms are within 15 dB of the loudest: nobody stops there."""
    speech_s: float = 0.0
    """Time in 20 ms frames that are near the loudest ones: pauses and silence do not count."""


def measure(recording: Source) -> Sound:
    """Decode one recording and measure it."""
    sound = Decoded(recording, longest_s=LONGEST_S)
    try:
        samples = joined(sound)
    except AudioError as error:
        return Sound(fault=error.cause)
    except EnvironmentProblem:
        raise
    except Exception as error:  # a decoder may raise anything
        return Sound(fault=f"{type(error).__name__}: {first_line(error)}")
    frames_db = _frames_db(samples)
    threshold_db = max(np.quantile(frames_db, 0.95) - _SPEECH_BELOW_LOUDEST_DB, _SPEECH_ABOVE_DB)
    return Sound(
        duration_s=len(samples) / SAMPLE_RATE_HZ,
        tolerance_s=sound.tolerance_s,
        fingerprint=hashlib.md5(to_int16(samples).tobytes(), usedforsecurity=False).hexdigest(),
        rate_hz=sound.rate_hz,
        channels=sound.channels,
        level_db=_decibel(float(np.mean(np.square(samples)))),
        peak=sound.peak,
        canceled=sound.canceled,
        ends_loud=bool(frames_db[-_END_FRAMES:].max() > np.quantile(frames_db, 0.95) - _LOUD_BELOW_LOUDEST_DB),
        clipped=float(np.mean(np.abs(samples) >= _FULL_SCALE)),
        speech_s=float(np.sum(frames_db > threshold_db)) * _FRAME / SAMPLE_RATE_HZ,
    )


def _frames_db(samples: np.ndarray) -> np.ndarray:
    whole = max(len(samples) // _FRAME, 1)
    frames = np.resize(samples, (whole, _FRAME)) if len(samples) < _FRAME else samples[: whole * _FRAME]
    power = np.mean(np.square(frames.reshape(whole, _FRAME)), axis=1)
    return 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))


def _decibel(power: float) -> float:
    return max(_FLOOR_DB, 10 * float(np.log10(max(power, 1e-12))))
