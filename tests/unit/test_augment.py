"""Draws depend on seed, epoch and clip alone, and stay within their caps."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.audio.augment import (
    allowed_speeds,
    clip_seed,
    draw_masks,
    draw_speed,
    no_masks,
    perturbed_length,
    speed_ratio,
)
from hebrew_asr.config.recipe import Augmentation

SEEDS = st.integers(0, 2**64 - 1)


def test_the_seed_is_pinned():
    """A run that resumes on another version must see the same augmentation."""
    seed = clip_seed(42, 0, "clip")
    assert seed == 3503703925834927176
    assert draw_speed(seed, (0.9, 1.0, 1.1)) == 1.0
    masks = draw_masks(seed, 150, Augmentation())
    assert masks.freq.tolist() == [[2, 24], [104, 117]]
    assert masks.time.tolist() == [[28, 33], [68, 74]]
    assert clip_seed(42, 0, "clip", 0) == seed and clip_seed(42, 0, "clip", 1) == 1386225642786553609


def test_every_part_of_the_seed_counts():
    three = (0, 1, 11)
    parts = product(three, three, ("a", "1/a", "a\0", "א"), (0, 1, 300))
    seeds = {clip_seed(seed, epoch, clip, times) for seed, epoch, clip, times in parts}
    assert len(seeds) == 3 * 3 * 4 * 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_speeds_are_drawn_evenly():
    factors = (0.9, 1.0, 1.1)
    drawn = Counter(draw_speed(clip_seed(0, 0, str(clip)), factors) for clip in range(3000))
    assert set(drawn) == set(factors)
    assert all(900 < count < 1100 for count in drawn.values())


SPEEDS = st.sampled_from([0.5, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 2.0])


@given(st.integers(1, 600_000), st.lists(SPEEDS, min_size=1).map(tuple), st.integers(1, 600_000))
def test_no_clip_that_fits_is_slowed_down_until_it_does_not(samples, factors, longest):
    allowed = allowed_speeds(samples, factors, longest)
    if samples <= longest:
        assert all(perturbed_length(samples, speed) <= longest for speed in allowed)
    fitting = [speed for speed in factors if perturbed_length(samples, speed) <= longest]
    assert list(allowed) == (fitting or [1.0])


def test_27_s_are_slowed_down_to_30_and_no_more():
    factors = (0.9, 1.0, 1.1)
    assert allowed_speeds(27 * 16_000, factors, 30 * 16_000) == factors
    assert allowed_speeds(27 * 16_000 + 1, factors, 30 * 16_000) == (1.0, 1.1)
    assert allowed_speeds(30 * 16_000, (0.8, 0.9), 30 * 16_000) == (1.0,)


@given(st.integers(1, 600_000), st.sampled_from([0.5, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 2.0]))
def test_perturbed_length_is_the_exact_quotient_rounded_up(samples: int, speed: float):
    played = perturbed_length(samples, speed)
    assert (played - 1) * speed_ratio(speed) < samples <= played * speed_ratio(speed)
    assert perturbed_length(samples, 1.0) == samples


@given(
    SEEDS,
    st.integers(50, 3000),
    st.integers(0, 4),
    st.integers(0, 128),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_masks_stay_in_the_clip_and_under_their_caps(seed, frames, count, widest, longest_s, share):
    spec = Augmentation(
        num_freq_masks=count,
        max_freq_width_bins=widest,
        num_time_masks=count,
        max_time_width_s=longest_s,
        max_time_share=share,
    )
    masks = draw_masks(seed, frames, spec)
    for intervals, cap, length in (
        (masks.freq, widest, 128),
        (masks.time, min(longest_s * 100, share * frames), frames),
    ):
        assert intervals.shape == (count, 2) and intervals.dtype == np.int32
        width = intervals[:, 1] - intervals[:, 0]
        assert ((width >= 0) & (width <= cap)).all()
        assert ((intervals >= 0) & (intervals <= length)).all()
    assert all(np.array_equal(one, two) for one, two in zip(masks, draw_masks(seed, frames, spec), strict=True))


def test_a_short_clip_keeps_most_of_itself():
    """Fixed masks of up to a second blank 71 % of a one-second clip on average."""
    kept = []
    for clip in range(300):
        blank = np.zeros(100, bool)
        for first, stop in draw_masks(clip_seed(0, 0, str(clip)), 100, Augmentation()).time:
            blank[first:stop] = True
        kept.append(1 - blank.mean())
    assert min(kept) >= 0.7
    assert 0.8 < np.mean(kept) < 0.95


def test_widest_masks_do_occur():
    drawn = [draw_masks(clip_seed(0, 0, str(clip)), 1000, Augmentation()) for clip in range(500)]
    assert max(int(np.diff(masks.freq).max()) for masks in drawn) == 27
    assert max(int(np.diff(masks.time).max()) for masks in drawn) == 100
    assert max(int(masks.freq.max()) for masks in drawn) == 128


def test_no_masks_has_the_shape_of_drawn_ones():
    spec = Augmentation(num_freq_masks=3, num_time_masks=1)
    for nothing, drawn in zip(no_masks(spec), draw_masks(0, 100, spec), strict=True):
        assert nothing.shape == drawn.shape and not nothing.any()
