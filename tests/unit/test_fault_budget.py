"""The budget of unreadable clips counts clips, once each, over all sessions of a run, the same on every rank."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from hebrew_asr.config.recipe import Faults
from hebrew_asr.data.clip_audio import Unreadable
from hebrew_asr.data.loader import StepBatch
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import DataError, TrainingFault
from hebrew_asr.training.faults import FaultBudget
from hebrew_asr.training.train_state import TrainState


@pytest.fixture
def budget(ranks: Ranks) -> Callable[..., FaultBudget]:
    def made(share: float, clips: int, **more) -> FaultBudget:
        return FaultBudget(Faults(max_unreadable_share=share), clips, ranks, **more)

    return made


@pytest.mark.parametrize(
    "ids", [("a:1", "a:2", "a:3"), ("a", "b", "c"), (" : ", ":", "::"), ("clip 1: x", "clip 1: y", "z")]
)
def test_clips_are_counted_whatever_their_ids_look_like(budget, ids):
    faults = budget(0.02, 100)
    for step, clip_id in enumerate(ids[:2]):
        record, too_many = faults.unreadable(step, (Unreadable(clip_id, "cannot: be read"),))
        assert too_many is None
        assert record.clips == [clip_id] and record.reasons == [f"clip {clip_id}: cannot: be read"]
        assert record.step == step + 1
    faults.unreadable(2, (Unreadable(ids[0], "another reason"),))  # the same clip in the next epoch
    assert faults.unreadable_ids == sorted(ids[:2])
    record, too_many = faults.unreadable(3, (Unreadable(ids[2], "x"),))
    assert record.clips == [ids[2]] and isinstance(too_many, DataError)
    assert re.search(r"3 unreadable clips, the recipe allows 2 .*step 4: clip ", str(too_many))


def test_the_count_goes_on_after_a_resume(budget):
    before = budget(0.01, 100)
    before.unreadable(0, (Unreadable("a", "x"),))
    state = TrainState(**TrainState(unreadable_clips=before.unreadable_ids).to_dict())
    again = budget(0.01, 100, unreadable=state.unreadable_clips)
    assert again.unreadable(7, (Unreadable("a", "x"),))[1] is None  # no other clip
    resumed = budget(0.01, 100, unreadable=state.unreadable_clips)
    assert "2 unreadable clips" in str(resumed.unreadable(8, (Unreadable("b", "x"),))[1])


def test_a_small_set_bears_none(budget):
    assert "1 unreadable clip, the recipe allows 0" in str(budget(0.001, 999).unreadable(0, (Unreadable("a", "x"),))[1])


def test_non_finite_steps_are_borne_in_a_row_only(ranks):
    faults, fed = FaultBudget(Faults(non_finite_patience=2), 100, ranks), StepBatch(4, [])
    for _ in range(3):
        assert [faults.non_finite(fed).step for _ in range(2)] == [5, 5]
        faults.finite()
    faults.non_finite(fed), faults.non_finite(fed)
    with pytest.raises(TrainingFault, match="3 steps in a row"):
        faults.non_finite(fed)
