"""Which rank of a machine is gone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hebrew_asr.engine import watchdog
from hebrew_asr.launching.processes import process_space
from tests.support.tiny_task import environment


@pytest.fixture
def peer():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_dead_peer_is_named_and_living_ones_are_not(peer):
    hosts = [(process_space(), peer.pid), (process_space(), os.getpid())]
    watch = watchdog.Watchdog(SimpleNamespace(rank=1, gather=lambda _: hosts))  # type: ignore[arg-type]
    try:
        assert watch.dead_peer() is None
        peer.kill()
        peer.wait()
        assert watch.dead_peer() == 0
    finally:
        watch.stand_down()


def test_a_container_with_the_name_of_its_host_has_process_ids_of_its_own():
    script = "from hebrew_asr.launching.processes import process_space; print(process_space())"
    line = ["unshare", "--map-root-user", "--pid", "--fork", sys.executable, "-c", script]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr:
        pytest.skip("this user may not make a namespace")
    inside = ast.literal_eval(done.stdout)
    assert inside != process_space() and inside[0] == process_space()[0]
