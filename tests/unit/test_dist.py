"""Ranks on a CPU keep to cores of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.launching import place
from hebrew_asr.launching.command import launch_for
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.check import check

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")


@pytest.fixture
def cores() -> Iterator[list[int]]:
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield sorted(before)
    os.sched_setaffinity(0, before)
    torch.set_num_threads(threads)


def share(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> set[int]:
    """Cores of a local rank."""
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    place.share_cores()
    return os.sched_getaffinity(0)


def test_ranks_share_all_cores_between_them(monkeypatch, cores):
    ranks = len(cores)
    shares = []
    for rank in range(ranks):
        shares.append(share(monkeypatch, rank, ranks))
        assert torch.get_num_threads() == len(cores) // ranks
        os.sched_setaffinity(0, cores)
    assert sum(map(len, shares)) == len(cores) and set().union(*shares) == set(cores)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_ranks_than_cores_may_run_anywhere(monkeypatch, cores):
    assert share(monkeypatch, 1, len(cores) + 1) == set(cores)
    assert torch.get_num_threads() == 1


def test_the_guides_time_out_is_honored_or_refused(monkeypatch):
    monkeypatch.delenv("NCCL_TIMEOUT", raising=False)
    assert place.collective_timeout_s() == 600
    monkeypatch.setenv("NCCL_TIMEOUT", "1800")
    assert place.collective_timeout_s() == 1800
    for wrong in ("half an hour", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("NCCL_TIMEOUT", wrong)
        told = f"NCCL_TIMEOUT={wrong}: give seconds"
        with pytest.raises(EnvironmentProblem, match=told):
            check(TrainArguments(ds="cpu", recipe="no such recipe"))
        with pytest.raises(EnvironmentProblem, match=told):
            launch_for(Path("train.py"), [], None, None, on_gpus=False, usual_ranks=1)
        with pytest.raises(EnvironmentProblem, match=told):
            place.collective_timeout_s()
