"""What a Dask cluster takes from ``prepare``'s speed: processor time of a clip, against the pool of one machine.

    python -m tests.benchmarks.cluster_speed [--clips 2000] [--rounds 2]

Both have two worker processes on this machine, and rounds are interleaved. Processor time is that of every process that
takes part: ``prepare``, its workers, and the scheduler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hebrew_asr.launching.processes import free_port
from tests.benchmarks.prepare_speed import build_corpus

_WORKERS = 2


def cpu_s(of: list[subprocess.Popen[bytes]]) -> float:
    """User and system time of processes and of all that they have started."""
    trees = [[psutil.Process(one.pid), *psutil.Process(one.pid).children(recursive=True)] for one in of]
    return sum(sum(process.cpu_times()[:2]) for tree in trees for process in tree)


def prepared(corpus: Path, out: Path, *more: str) -> tuple[float, float]:
    """Wall and processor seconds of ``prepare`` and the workers that it starts."""
    command = [sys.executable, "-m", "hebrew_asr.cli", "prepare", "--source", str(corpus), "--out", str(out), *more]
    started = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    assert status == 0, f"prepare left with {os.waitstatus_to_exitcode(status)}"
    shutil.rmtree(out)
    return time.monotonic() - started, used.ru_utime + used.ru_stime


def main() -> None:
    """Print a line for each round and way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_corpus(folder / "v5", arguments.clips)
        address = f"tcp://127.0.0.1:{free_port()}"
        dask = [sys.executable, "-m", "dask"]
        worker = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", temporary]
        scheduler = [*dask, "scheduler", "--host", address, "--no-dashboard"]
        cluster = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in [scheduler, *[worker] * _WORKERS]
        ]
        try:
            print("| round | way | seconds | CPU ms for a clip |\n|---|---|---|---|")
            for number in range(arguments.rounds + 1):  # the first, which imports, does not count
                wall_s, used_s = prepared(folder / "v5", folder / "here", "--processes", str(_WORKERS))
                before_s = cpu_s(cluster)
                other_wall_s, other_used_s = prepared(folder / "v5", folder / "there", "--workers-on", address)
                other_used_s += cpu_s(cluster) - before_s
                for way, wall, used in (("pool", wall_s, used_s), ("Dask", other_wall_s, other_used_s)):
                    if number:
                        line = f"| {number} | {way} | {wall:.1f} | {1e3 * used / arguments.clips:.2f} |"
                        print(line, flush=True)
        finally:
            for process in cluster:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                process.wait()


if __name__ == "__main__":
    main()
