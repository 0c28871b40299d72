"""A rank that dies, killed or by itself, takes the others of its machine down; ranks that stand down may leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hebrew_asr.engine import watchdog
from hebrew_asr.errors import TrainingFault

WATCH = """
import socket, sys, time
from pathlib import Path
from types import SimpleNamespace
from hebrew_asr.engine import watchdog
watchdog._POLL_S = 0.05
peers = [(socket.gethostname(), int(sys.argv[1])), ("another machine", 1), (socket.gethostname(), 0)]
watch = watchdog.Watchdog(SimpleNamespace(rank=2, gather=lambda own: peers[:2] + [own]))
print("watching", flush=True)
if "stands-down" in sys.argv:
    sys.stdin.read()
    watch.stand_down()
time.sleep(0.6 if "stands-down" in sys.argv else 60)
"""


@pytest.fixture
def peer():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def watching(peer: subprocess.Popen[Any], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WATCH, str(peer.pid), *options]
    job = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "watching\n"
    return job


def test_a_killed_rank_takes_the_others_down_as_a_zombie_too(peer):
    job = watching(peer)
    peer.kill()  # nobody waits for it yet: it stays a zombie
    started = time.monotonic()
    assert job.wait(30) == TrainingFault.exit_code and time.monotonic() - started < 20
    assert "error: rank 0 is gone; rank 2 leaves too" in job.communicate()[1]


def test_ranks_that_stood_down_may_leave(peer):
    job = watching(peer, "stands-down")
    job.stdin.close()  # type: ignore[union-attr]
    job.stdin = None
    time.sleep(0.3)
    peer.kill()
    assert job.wait(30) == 0


def test_a_dead_peer_is_named_and_living_ones_are_not(peer):
    hosts = [(watchdog.socket.gethostname(), peer.pid), (watchdog.socket.gethostname(), os.getpid())]
    watch = watchdog.Watchdog(SimpleNamespace(rank=1, gather=lambda _: hosts))  # type: ignore[arg-type]
    try:
        assert watch.dead_peer() is None
        peer.kill()
        peer.wait()
        assert watch.dead_peer() == 0
    finally:
        watch.stand_down()
