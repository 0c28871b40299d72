"""What happens to a clip in an epoch: drawn on the host from (seed, epoch, clip id, times before) alone.

So a clip is augmented alike whichever rank, worker, batch or resumed run it meets. Speed perturbation follows Ko et
al. (Interspeech 2015), masks follow SpecAugment (Park et al. 2019, arXiv 1904.08779) without time warping.
:class:`hebrew_asr.audio.mel.LogMel` applies on the device what is drawn here.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np

from hebrew_asr.audio.frames import FRAMES_PER_S, MEL_BINS


class MaskSettings(Protocol):
    """Of a recipe's ``Augmentation``, where each is described."""

    @property
    def num_freq_masks(self) -> int: ...
    @property
    def max_freq_width_bins(self) -> int: ...
    @property
    def num_time_masks(self) -> int: ...
    @property
    def max_time_width_s(self) -> float: ...
    @property
    def max_time_share(self) -> float: ...


class Masks(NamedTuple):
    """Half-open intervals [first, stop) to blank."""

    freq: np.ndarray
    """(masks, 2) int32, mel bins."""
    time: np.ndarray
    """(masks, 2) int32, mel frames of the clip."""


def clip_seed(seed: int, epoch: int, clip_id: str, times_before: int = 0) -> int:
    """64-bit seed of one clip in one epoch, in which it came ``times_before``; the same on every rank and machine."""
    salt = times_before.to_bytes(blake2b.SALT_SIZE)
    return int.from_bytes(blake2b(f"{seed}/{epoch}/{clip_id}".encode(), digest_size=8, salt=salt).digest(), "little")


@lru_cache
def speed_ratio(speed: float) -> Fraction:
    """``speed`` as a ratio: numerator samples of the recording become denominator samples."""
    return Fraction(speed).limit_denominator(100)


def perturbed_length(samples: Any, speed: float) -> Any:
    """Samples after playing ``samples``, an integer or an array of them, at ``speed`` times the tempo."""
    ratio = speed_ratio(speed)
    return -(-samples * ratio.denominator // ratio.numerator)


def allowed_speeds(samples: int, factors: tuple[float, ...], longest_samples: int) -> tuple[float, ...]:
    """Those of ``factors`` that leave a clip of ``samples`` at ``longest_samples`` or less; 1.0 alone if none does."""
    return tuple(factor for factor in factors if perturbed_length(samples, factor) <= longest_samples) or (1.0,)


def draw_speed(seed: int, speeds: tuple[float, ...]) -> float:
    """One of ``speeds``, uniformly. ``seed`` is a :func:`clip_seed`."""
    return speeds[int(np.random.default_rng((seed, 0)).integers(len(speeds)))]


def draw_masks(seed: int, num_frames: int, spec: MaskSettings) -> Masks:
    """Draw a clip's SpecAugment masks.

    Args:
        seed: a :func:`clip_seed`.
        num_frames: mel frames of the clip, after speed perturbation.
        spec: counts and largest widths.
    """
    rng = np.random.default_rng((seed, 1))
    longest = min(int(spec.max_time_width_s * FRAMES_PER_S), int(spec.max_time_share * num_frames))
    return Masks(
        freq=_intervals(rng, spec.num_freq_masks, min(spec.max_freq_width_bins, MEL_BINS), MEL_BINS),
        time=_intervals(rng, spec.num_time_masks, longest, num_frames),
    )


def no_masks(spec: MaskSettings) -> Masks:
    """As many masks as ``spec`` draws, all empty: for an unmasked clip among masked ones."""
    return Masks(np.zeros((spec.num_freq_masks, 2), np.int32), np.zeros((spec.num_time_masks, 2), np.int32))


def _intervals(rng: np.random.Generator, count: int, widest: int, length: int) -> np.ndarray:
    widths = rng.integers(0, widest + 1, size=count)
    first = rng.integers(0, length - widths + 1)
    return np.stack([first, first + widths], axis=-1).astype(np.int32)
