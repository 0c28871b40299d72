"""How a process ends that does not wait for its own children."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from tests.support.tiny_task import ROOT

SCRIPT = """
import multiprocessing, time
from hebrew_asr.errors import exit_process

class Stuck(multiprocessing.get_context("fork").Process):
    kill = lambda self: None  # as for one in a read of a file system that hangs

processes = [Stuck(target=time.sleep, args=(60,)) for _ in range(5)]
processes.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
for process in processes:
    process.start()
print(*(process.pid for process in processes), flush=True)
exit_process(6)
"""


def test_children_that_no_signal_ends_hold_a_process_for_a_second_together():
    line, variables = [sys.executable, "-c", SCRIPT], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, text=True) as process:
        *stuck, other = map(int, process.stdout.readline().split())
        started = time.monotonic()
        code, lasted_s = process.wait(), time.monotonic() - started
        assert not psutil.pid_exists(other)
        for pid in stuck:
            psutil.Process(pid).kill()
    assert code == 6 and 0.5 < lasted_s < 2.5
