"""What a Dask cluster takes from ``prepare``'s speed: processor time of a clip, against the pool of one machine.

    python -m tests.benchmarks.cluster_speed [--clips 2000] [--rounds 2]

Both have two worker processes on this machine, and rounds are interleaved. The pool starts its workers anew each round,
and the cluster's stay.
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
from tests.support.tiny_task import ROOT

_WORKERS = 2


def cpu_s(of: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
    """User and system time of the processes that convert, and of scheduler and nannies."""
    own = [psutil.Process(one.pid) for one in of]
    below = [process for one in own for process in one.children(recursive=True)]
    working, others = (sum(sum(process.cpu_times()[:2]) for process in some) for some in (below, own))
    return working, others


_PREPARE = """
import os, sys
from hebrew_asr.cli import main
if __name__ == "__main__":
    code = main(["prepare", *sys.argv[2:]])
    times = os.times()
    with open(sys.argv[1], "w") as told:
        print(times.children_user + times.children_system, times.user + times.system, file=told)
    sys.exit(code)
"""


def prepared(corpus: Path, out: Path, *more: str) -> tuple[float, float, float]:
    """Wall seconds of ``prepare``, and processor seconds of the workers that it starts and its own."""
    script, told = out.with_suffix(".py"), out.with_suffix(".told")
    script.write_text(_PREPARE)
    command = [sys.executable, str(script), str(told), "--source", str(corpus), "--out", str(out), *more]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    shutil.rmtree(out)
    workers_s, own_s = map(float, told.read_text().split())
    return time.monotonic() - started, workers_s, own_s


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
            print("| round | way | seconds | CPU ms for a clip, workers | all else |\n|---|---|---|---|---|")
            for number in range(arguments.rounds + 1):  # the first, in which the cluster imports, does not count
                wall_s, workers_s, else_s = prepared(folder / "v5", folder / "here", "--processes", str(_WORKERS))
                before = cpu_s(cluster)
                other = prepared(folder / "v5", folder / "there", "--workers-on", address)
                spent = [after - then for after, then in zip(cpu_s(cluster), before, strict=True)]
                lines = {"pool": (wall_s, workers_s, else_s), "Dask": (other[0], spent[0], sum(other[1:]) + spent[1])}
                for way, (wall, *used) in lines.items():
                    told = " | ".join(f"{1e3 * used_s / arguments.clips:.2f}" for used_s in used)
                    print(f"| {number or 'not counted'} | {way} | {wall:.1f} | {told} |", flush=True)
        finally:
            for process in cluster:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                process.wait()


if __name__ == "__main__":
    main()
