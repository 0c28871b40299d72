"""The sampler: every clip once an epoch, the same steps on any rank count, ranks evenly loaded."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.config.batching import Batching
from hebrew_asr.data.sampler import StepSampler

costs = st.lists(st.floats(0.5, 30.0), min_size=1, max_size=120)


def batching(clips_per_step: int, ranks: int, micro: int) -> Batching:
    return Batching(clips_per_step, ranks, math.ceil(clips_per_step / (ranks * micro)), micro)


@given(costs, st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32))
def test_an_epoch_is_every_clip_once_on_any_rank_count(durations, clips_per_step, ranks, micro, seed):
    ranks = min(ranks, clips_per_step)
    sampler = StepSampler(durations, batching(clips_per_step, ranks, micro), seed)
    alone = StepSampler(durations, batching(clips_per_step, 1, clips_per_step), seed)
    for epoch in (0, 3):
        seen = []
        for step in range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch):
            dealt = sampler.deal(step)
            flat = [draw.clip for own in dealt for batch in own for draw in batch]
            assert sorted(flat) == sorted(alone.clips_of_step(step)), "the step's clips depend on the rank count"
            assert {len(own) for own in dealt} == {sampler._batching.accumulation}
            assert all(len(batch) <= micro for own in dealt for batch in own)
            sizes = [sum(map(len, own)) for own in dealt]
            assert max(sizes) - min(sizes) <= max(1, math.ceil(len(flat) / ranks))
            seen += flat
        assert sorted(seen) == list(range(len(durations)))


@given(costs, st.integers(0, 100), st.integers(0, 100))
def test_a_step_is_a_pure_function_of_its_number(durations, one, other):
    sampler, fresh = (StepSampler(durations, batching(8, 2, 4), 7) for _ in range(2))
    sampler.deal(other)
    assert sampler.deal(one) == fresh.deal(one)


@given(costs, st.integers(1, 40), st.integers(1, 60))
def test_the_longest_step_has_the_most_sound(durations, clips_per_step, last_step):
    sampler = StepSampler(durations, batching(clips_per_step, 1, clips_per_step), 7)
    lasts_s = [sum(durations[clip] for clip in sampler.clips_of_step(step)) for step in range(last_step)]
    assert math.isclose(lasts_s[sampler.longest_step(last_step)], max(lasts_s))


def test_epochs_and_seeds_differ():
    sampler = StepSampler([1.0] * 200, batching(50, 1, 50), 1)
    assert sampler.clips_of_step(0) != sampler.clips_of_step(sampler.steps_per_epoch)
    assert sampler.clips_of_step(0) != StepSampler([1.0] * 200, batching(50, 1, 50), 2).clips_of_step(0)


def test_repeats_are_counted_through_an_epoch_of_any_length():
    order = np.random.default_rng(0).integers(0, 50_000, 150_000).astype(np.uint32)
    sampler = StepSampler(np.ones(150_000), batching(1000, 1, 1000), 3, lambda epoch: order.copy())
    before: Counter[int] = Counter()
    for step in range(sampler.steps_per_epoch):
        for clip, times_before in sampler.draws_of_step(step):
            assert times_before == before[clip]
            before[clip] += 1
    assert max(before.values()) > 9


def test_long_clips_are_spread_over_ranks():
    durations = [30.0] * 4 + [1.0] * 60
    sampler = StepSampler(durations, batching(64, 4, 16), 0)
    loads = [sum(durations[draw.clip] for batch in own for draw in batch) for own in sampler.deal(0)]
    assert max(loads) / min(loads) < 1.05
