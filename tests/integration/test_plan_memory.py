"""What the plan says of DeepSpeed's optimizers is what they hold, counted on real engines."""

from __future__ import annotations

import json

import pytest

from tests.support import memory_worker
from tests.support.tiny_task import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
BF16 = {"bf16": True}
ROWS_STAY = {"stage": 2, **BF16, "rows_stay": True}
"""Rows of the head that stay have no gradients there, and the plan does not know of them."""
CASES = {
    2: [
        *({"stage": stage, "bf16": False} for stage in (0, 3)),
        *({"stage": stage, **BF16} for stage in (1, 2, 3)),
        ROWS_STAY,
    ],
    1: [
        *({"stage": stage, **BF16} for stage in (1, 3)),
        {"stage": 2, "offload": True, **BF16},
        {"stage": 3, "offload": True, **BF16},
    ],
}
ODDS = 200
"""Step counts, norms and flags: a few bytes for each param group."""


@pytest.mark.parametrize("ranks", CASES)
def test_optimizers_hold_what_the_plan_says(task, warm, tmp_path, ranks):
    out = tmp_path / "found.json"
    arguments = [str(task), str(out), json.dumps(CASES[ranks])]
    done = warm.finish(arguments, ranks=ranks, port=free_port(), program=memory_worker.__name__)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(out.read_text())
    assert [row["spec"] for row in rows] == CASES[ranks]
    for row in rows:
        expected, found = row["expected"], row["found"]
        lasting = expected["optimizer"] + expected["gradients"] + expected["buckets"] + expected["host"]
        if row["spec"] == ROWS_STAY:
            assert found["after step"] - lasting <= 10 * ODDS, row  # which rows train is held too
            assert found["before step"] < lasting + expected["step_gradients"], row
            continue
        assert 0 <= found["after step"] - lasting <= ODDS, row
        assert 0 <= found["before step"] - lasting - expected["step_gradients"] <= ODDS, row
