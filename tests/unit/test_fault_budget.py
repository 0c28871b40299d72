"""The budget of unreadable clips counts clips, once each, over all sessions of a run, the same on every rank."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from hebrew_asr.checkpoints.store import CheckpointStore
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


@pytest.mark.parametrize(
    ("sealed", "told"),
    [
        (None, "not saved; there is no checkpoint. If the clips"),
        (1, "not saved; --resume auto goes on from the checkpoint of step 1, 1 step earlier. If the clips"),
        (2, "goes on from the checkpoint of step 2, which holds them too: if it ends like this again, move it away"),
        (4, "goes on from the checkpoint of step 4, which holds them too: if it ends like this again, move it away"),
    ],
)
def test_non_finite_steps_are_borne_in_a_row_only(ranks, tmp_path, sealed, told):
    """Steps 3 to 5 are skipped, so what there is after step 2 may be what makes them so."""
    kept = CheckpointStore(tmp_path, ranks, keep_last=1, keep_best=0, background=True, sealed_step=sealed)
    faults, fed = FaultBudget(Faults(non_finite_patience=2), 100, ranks), StepBatch(4, [])
    for _ in range(3):
        assert [faults.non_finite(fed, kept).step for _ in range(2)] == [5, 5]
        faults.finite()
    faults.non_finite(fed, kept), faults.non_finite(fed, kept)
    with pytest.raises(TrainingFault, match="3 steps in a row") as fault:
        faults.non_finite(fed, kept)
    assert told in str(fault.value)


def test_a_checkpoint_that_is_being_written_counts_when_gradients_stay_non_finite(ranks, tmp_path):
    kept = CheckpointStore(tmp_path, ranks, keep_last=1, keep_best=0, background=True)
    kept.save(lambda: [], 3, {})
    with pytest.raises(TrainingFault, match="goes on from the checkpoint of step 3, 1 step earlier"):
        FaultBudget(Faults(non_finite_patience=0), 100, ranks).non_finite(StepBatch(4, []), kept)
