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


def test_a_disk_that_is_full_is_told_in_a_line():
    """As where figures of a measurement are written: a rank has no command around it that would say so."""
    work = "lambda *_: open('/dev/full', 'w', buffering=1).write('figures\\n')"
    script = f"from hebrew_asr.training.rank import run_rank; raise SystemExit(run_rank({work}, []))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr and "make room" in done.stderr
