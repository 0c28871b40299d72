"""What is said of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from hebrew_asr.training.saving import slow_disk_advice


@pytest.mark.parametrize(
    ("write_s", "patience_s", "is_told"),
    [(None, 30.0, False), (17.0, 30.0, False), (19.0, 30.0, True), (200.0, None, False)],
)
def test_a_disk_that_is_slow_disk_advice_is_told(write_s, patience_s, is_told):
    told = slow_disk_advice(write_s, patience_s, Path("runs/x"))
    assert (told is not None) == is_told
    if told is not None:
        assert "takes 19 s" in told and "touch runs/x/STOP" in told and "hebrew-asr train, which waits" in told
