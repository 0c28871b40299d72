"""Measure clips for an audit: decode each one, and say how long, how loud and how full of speech it is."""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track

from hebrew_asr.audio.decode import LONGEST_S, SAMPLE_RATE_HZ, joined, quiet_decoders, to_int16
from hebrew_asr.audio.decode import Sound as Decoded
from hebrew_asr.audio.source import AudioError, Source
from hebrew_asr.cores import usable_cores
from hebrew_asr.corpus.preparation.workers import start_worker
from hebrew_asr.data.clip_audio import read_ahead
from hebrew_asr.data.clips import Clip
from hebrew_asr.errors import EnvironmentProblem, first_line
from hebrew_asr.text.normalize import normalize

_CLIPS_PER_TASK = 200
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


@dataclass(frozen=True, slots=True)
class Measured:
    """A line of a manifest and what its audio is like."""

    side: str
    """``train`` or ``eval``."""
    clip: Clip
    sound: Sound
    words: str
    """Transcript in the strict normal form."""
    target: str
    """Transcript in the target normal form, which it should have already."""

    @property
    def chars_per_s(self) -> float:
        """Characters of the transcript per second of the clip."""
        return len(self.clip.transcript) / max(self.sound.duration_s, 1e-3)


def measure_all(sides: dict[str, list[Clip]], processes: int | None) -> list[Measured]:
    """Decode every clip in worker processes; results in the order of the manifests."""
    clips = [(side, clip) for side, own in sides.items() for clip in own]
    tasks = [clips[start : start + _CLIPS_PER_TASK] for start in range(0, len(clips), _CLIPS_PER_TASK)]
    if len(tasks) == 1:  # not worth a process
        return measure_clips(clips)
    workers = min(processes or len(usable_cores()), len(tasks))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=start_worker) as pool:
        results = track(pool.map(measure_clips, tasks), "auditing", len(tasks), console=Console(stderr=True))
        return [clip for task in results for clip in task]


def measure_clips(clips: list[tuple[str, Clip]]) -> list[Measured]:
    """Measure some clips, each with the name of its side, in their order."""
    read_ahead(clip for _, clip in clips)
    with quiet_decoders():
        return [
            Measured(
                side,
                clip,
                measure(clip.sound),
                normalize(clip.transcript, "strict"),
                normalize(clip.transcript, "target"),
            )
            for side, clip in clips
        ]


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
