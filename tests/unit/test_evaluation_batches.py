"""How many clips an evaluation decodes together: as many as a card's memory holds, cut alike on every rank."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.config.recipe import Evaluation
from hebrew_asr.evaluation import evaluator as evaluation
from hebrew_asr.evaluation.evaluator import Evaluator
from hebrew_asr.inference.transcriber import Transcriber
from hebrew_asr.model.sizes import PUBLISHED
from tests.support.footprint import config_of, without_memory
from tests.support.native import build

GIB = 1 << 30


@pytest.fixture(scope="module")
def full_size() -> Transcriber:
    config = config_of(PUBLISHED["Qwen/Qwen3-ASR-1.7B"])
    return Transcriber(without_memory(config, torch.bfloat16), build()[1])


@given(st.floats(0.1, 30), st.floats(0.1, 30), st.floats(0.5, 14), st.floats(0.5, 14))
def test_more_memory_holds_more_clips_and_longer_ones_fewer(full_size, long_s, short_s, large_gib, small_gib):
    large, small = sorted([large_gib, small_gib], reverse=True)
    long, short = sorted([long_s, short_s], reverse=True)
    counts = [full_size.most_within(int(gib * GIB), seconds) for gib in (large, small) for seconds in (short, long)]
    assert counts[0] >= max(counts[1:3]) >= min(counts[1:3]) >= counts[3] >= 1


def test_a_large_card_decodes_hundreds_together_and_a_small_one_a_few(full_size):
    """A tenth of 141 and of 24 GiB."""
    assert full_size.most_within(14 * GIB, 5.0) > 500 and 100 < full_size.most_within(14 * GIB, 30.0) < 130
    assert 5 < full_size.most_within(int(2.4 * GIB), 30.0) < 16


@pytest.mark.parametrize("batch_clips", [None, 3])
def test_batches_hold_what_the_smallest_card_of_all_ranks_does(monkeypatch, full_size, batch_clips):
    monkeypatch.setattr(evaluation, "_memory_bytes", lambda _: 40 * GIB)
    ranks = SimpleNamespace(gather=lambda own: [own, 24 * GIB, 141 * GIB], device=torch.device("cpu"))
    evaluator = object.__new__(Evaluator)
    evaluator._ranks, evaluator._settings = ranks, replace(Evaluation(), batch_clips=batch_clips)
    longest_s = np.sort(np.random.default_rng(0).gamma(2.2, 2.0, 400).clip(0.5, 30))[::-1]
    cuts = evaluator._cuts(full_size, longest_s)
    assert cuts[0] == 0 and cuts[-1] == len(longest_s)
    sizes = [end - start for start, end in pairwise(cuts)]
    if batch_clips:
        assert {*sizes[:-1]} == {3}
        return
    assert sizes[0] < max(sizes) and all(
        size <= full_size.most_within(int(2.4 * GIB), longest_s[start])
        for start, size in zip(cuts[:-1], sizes, strict=True)
    )
