"""ZeRO-1 to ZeRO-3 over flat buffers, on real ranks: every gradient on its owner, whatever the buckets cut through."""

from __future__ import annotations

import json

import pytest

from tests.support import flat_worker
from tests.support.tiny_task import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
SPECS = [{"stage": 1, "micro_batches": count} for count in (1, 4)] + [
    {"stage": stage, "micro_batches": count, "zero": {"reduce_bucket_size": size, **more}}
    for stage in (2, 3)
    for count in (1, 2, 4)
    for size, more in ((1, {}), (50, {"overlap_comm": True}), (50, {"round_robin_gradients": True}), (10**6, {}))
    if stage == 2 or "round_robin_gradients" not in more
]
SPECS += [
    {
        "stage": stage,
        "micro_batches": count,
        "sends": "bf16",
        "zero": {"reduce_bucket_size": size, "overlap_comm": overlap},
    }
    for stage in (2, 3)
    for count, size, overlap in ((1, 50, True), (2, 50, True), (2, 1, False), (4, 10**6, True))
]
SPECS += [{"stage": 2, "micro_batches": 2, "sends": "bf16", "ranks_a_machine": 1, "zero": {"reduce_bucket_size": 50}}]
SPECS += [
    {"stage": stage, "micro_batches": 2, "zero": {"reduce_bucket_size": 50, "overlap_comm": stage == 2}, "above": above}
    for stage in (1, 2)
    for above in (["one", "bias"], ["large", "one", "bias"])
]
"""Weights above the seam: a whole group, which is updated late, and what lies in buckets with weights that are not."""
SPECS += [
    {
        "stage": 2,
        "micro_batches": 2,
        "keeps_rows": True,
        "above": above,
        "sends": sends,
        "zero": {"reduce_bucket_size": size},
    }
    for sends in ("fp32", "bf16")
    for above, size in (([], 20), ([], 10**6), (["tall"], 10**6))
]
"""A weight of which most rows stay, also where it lies above the seam and is updated late."""
SPECS += [{"stage": stage, "micro_batches": 1, "fails_at": group} for stage in (1, 2, 3) for group in (0, 1, 3)]
"""AdamW that cannot be compiled for any group, for the second, and in the second step."""
SPECS += [{"stage": 2, "micro_batches": 1, "fails_at": group, "keeps_rows": True} for group in (0, 3, 5)]
"""A bucket of one element becomes one of four a rank; 50 elements are no multiple of that on 1, 2 or 3 ranks."""


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_and_masters_are_torchs(warm, ranks):
    done = warm.finish([json.dumps(SPECS)], ranks=ranks, port=free_port(), program=flat_worker.__name__)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
