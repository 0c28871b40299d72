"""Which rank of a machine is gone."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from hebrew_asr.engine import watchdog


@pytest.fixture
def peer():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


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
