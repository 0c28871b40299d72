"""A rank that is killed takes the others of its machine down; ranks that stand down, or end together, may leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hebrew_asr.errors import TrainingFault
from tests.support.tiny_task import ROOT, free_port, wait_for
from tests.support.warm import WarmStart, has_ended

pytestmark = pytest.mark.integration


@pytest.fixture
def peer() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def left_after(peer: subprocess.Popen[bytes], warm: WarmStart, output: Path, *options: str) -> tuple[int, float]:
    """Exit code of a process that watched ``peer`` until it was killed, and how many seconds later it left."""
    output.touch()
    (pid,) = warm.start([str(peer.pid), *options], output=output, program="tests.support.watching")
    wait_for(lambda: "with the child" in output.read_text(), lambda: has_ended([pid]) and output.read_text(), 30)
    peer.kill()  # nobody waits for it yet: it stays a zombie
    killed = time.monotonic()
    return warm.wait(pid), time.monotonic() - killed


def test_a_killed_rank_takes_the_others_down_as_a_zombie_too(peer, warm, tmp_path):
    code, lasted_s = left_after(peer, warm, tmp_path / "output")
    assert code == TrainingFault.exit_code and lasted_s < 20
    told = (tmp_path / "output").read_text()
    assert "error: rank 0 is gone; rank 2 leaves too" in told
    (child,) = re.findall(r"with the child (\d+)", told)
    assert not psutil.pid_exists(int(child))


def test_ranks_that_stood_down_may_leave(peer, warm, tmp_path):
    code, _ = left_after(peer, warm, tmp_path / "output", "stands-down")
    assert code == 0


RANK = """
import sys, time
from hebrew_asr.engine import dist
from hebrew_asr.errors import Preempted, exit_process
from hebrew_asr.training.rank import run_rank

def work(*_):
    with dist.failing_together():
        pass
    time.sleep(float(sys.argv[1]))
    print(time.monotonic(), file=sys.stderr)
    raise Preempted("saved")

code = run_rank(work, [])
print(time.monotonic(), file=sys.stderr)
exit_process(code)
"""


@pytest.mark.parametrize("late", [0, 1])
def test_the_first_rank_speaks_first_and_leaves_last(late):
    """A launcher kills all ranks when one leaves, and the first holds the store that NCCL asks each second."""
    line, job = [sys.executable, "-c", RANK], {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    variables = {**os.environ, **job, "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [*line, "1.0" if rank == late else "0.0"],
            env={**variables, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=60)[1].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75]
    (first_raised, word, first_left), (other_raised, other_left) = said
    assert word == "saved"
    assert float(other_left) > max(float(first_raised), float(other_raised)), "the first has said its word"
    assert float(first_left) > float(other_raised), "the first has waited"
    assert float(first_left) - max(float(first_raised), float(other_raised)) < 3, "for no longer than it must"
