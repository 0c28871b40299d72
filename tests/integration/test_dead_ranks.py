"""A rank that is killed takes the others of its machine down; ranks that stand down may leave."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hebrew_asr.errors import TrainingFault
from tests.support.tiny_task import wait_for
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
