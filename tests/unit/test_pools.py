"""Worker processes end with the process that started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def test_workers_end_with_a_parent_that_is_killed():
    """At work and idle, though the parent could tell them nothing."""
    program = """
import os, time
from hebrew_asr.pools import Pool

pool = Pool(2)
busy = pool.submit(time.sleep, 600)
pool.submit(os.getpid).result()
print("started", flush=True)
busy.result()
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "started\n"
        started = psutil.Process(parent.pid).children()
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    for process in left:
        process.kill()
    assert len(started) >= 2 and not left
