"""The sample that is evaluated while training: spread over durations, whatever the manifest's order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.data.manifest import Clip
from hebrew_asr.evaluation.evaluator import stratified_sample

DURATIONS = st.lists(st.sampled_from([0.5, 1.0, 1.5]) | st.floats(0.1, 30), min_size=1, max_size=40)


@given(DURATIONS, st.integers(1, 45), st.randoms(use_true_random=False))
def test_a_sample_spreads_over_durations_in_any_order_of_the_manifest(durations, count, random):
    clips = [Clip(f"{index}.wav", "א", str(index), duration_s) for index, duration_s in enumerate(durations)]
    shuffled = random.sample(clips, len(clips))
    sample = stratified_sample(clips, count)
    assert sample == stratified_sample(shuffled, count)
    assert len(sample) == len({clip.id for clip in sample}) == min(count, len(clips))
    assert sample == sorted(sample, key=lambda clip: (clip.duration_s, clip.id))


@pytest.mark.parametrize("count", [10, 100])
def test_its_durations_are_distributed_as_those_of_all(count):
    durations = np.random.default_rng(0).gamma(2.0, 2.0, 5000)
    clips = [Clip(f"{index}.wav", "א", str(index), float(value)) for index, value in enumerate(durations)]
    drawn = [clip.duration_s for clip in stratified_sample(clips, count)]
    shares = (np.arange(count) + 0.5) / count
    assert drawn == pytest.approx(np.quantile(durations, shares), rel=0.02)
