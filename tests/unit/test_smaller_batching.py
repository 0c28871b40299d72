"""After an out-of-memory error: half the micro-batch, the same step, until a micro-batch is one clip."""

from __future__ import annotations

import pytest

from hebrew_asr.config.batching import Batching
from hebrew_asr.engine.engine import MicroBatchTooLarge
from hebrew_asr.errors import OutOfMemory, TrainingFault
from hebrew_asr.training.out_of_memory import earlier_fault, smaller_batching

AGREED, ALONE = (MicroBatchTooLarge("backward", [1], agreed, "4 GiB wanted") for agreed in (True, False))


def test_the_step_stays_whole_in_halves(tmp_path):
    batching = Batching(clips_per_step=64, num_ranks=2, accumulation=1, max_micro_batch=32)
    seen = []
    with pytest.raises(TrainingFault, match=r"step 4: rank 1 ran out .* one clip already \(4 GiB wanted\)"):
        while True:
            batching = smaller_batching(batching, AGREED, 3, tmp_path)
            seen.append((batching.max_micro_batch, batching.accumulation))
    assert seen == [(16, 2), (8, 4), (4, 8), (2, 16), (1, 32)]
    assert batching.clips_per_step == 64 and not list(tmp_path.iterdir())


def test_a_rank_alone_leaves_the_new_limit_for_the_resume(tmp_path):
    with pytest.raises(OutOfMemory, match="--resume auto, which takes at most 4 clips at a time instead of 8"):
        smaller_batching(Batching(16, 2, 1, 8), ALONE, 3, tmp_path)
    fault = earlier_fault(tmp_path)
    assert fault is not None
    assert (fault.step, fault.part, fault.ranks, fault.max_micro_batch) == (4, "backward", [1], 4)
    assert fault.batching == "16 clips per step = 2 ranks × 2 micro-batches × 4 clips"


def test_a_limit_that_cannot_be_written_is_no_promise(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutOfMemory, match=r"max_micro_batch.json could not be written \(.*\), so a resume will too"):
        smaller_batching(Batching(16, 2, 1, 8), ALONE, 3, tmp_path / "run")


def test_a_profile_that_cannot_accumulate_says_so(tmp_path):
    with pytest.raises(TrainingFault, match="cannot split a step"):
        smaller_batching(Batching(16, 2, 1, 8), AGREED, 0, tmp_path, accumulates=False)


@pytest.mark.parametrize(
    "content", [b"", b"{torn", b"[]", b'{"event": "fault", "step": 1, "kind": "x"}', b'{"event": "train"}', b"\xff"]
)
def test_a_damaged_limit_is_none(content, tmp_path):
    (tmp_path / "max_micro_batch.json").write_bytes(content)
    assert earlier_fault(tmp_path) is None
