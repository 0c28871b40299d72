"""What a Dask cluster takes from ``prepare``'s speed: processor time of the same units in a worker of either kind.

    python -m tests.benchmarks.cluster_speed [--clips 400] [--rounds 6]

Each has one worker process on this machine, and units are converted in turns, so that other load meets both alike. The
processor time of a worker is that of all its threads while it converts. Scheduler and nanny are processes apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import distributed
import numpy as np

from hebrew_asr.corpus.preparation.cluster import on_worker
from hebrew_asr.corpus.preparation.convert import convert_unit
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.workers import start_worker
from hebrew_asr.sources import Unit, open_source
from tests.benchmarks.prepare_speed import build_corpus


def converted(unit: Unit, folder: Path) -> np.ndarray:
    """For each row of a unit, of the process: CPU ms of all threads and of the one that converts, and page faults."""
    before = (time.process_time(), time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    done = convert_unit(unit, PrepareOptions(), folder, folder / "work")
    after = (time.process_time(), time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return (np.array(after) - np.array(before)) / done.rows * (1e3, 1e3, 1)


def main() -> None:
    """Print a line for either kind, and how they compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_worker) as pool,
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        folder = Path(temporary)
        (folder / "work" / "parts").mkdir(parents=True)
        build_corpus(folder / "v5", arguments.clips)
        units = [unit for shard in open_source(str(folder / "v5")).shards for unit in shard.units()]
        found = np.array(
            [
                [
                    pool.submit(converted, unit, folder).result(),
                    client.submit(on_worker, converted, unit, folder, pure=False).result(),
                ]
                for _ in range(arguments.rounds + 1)  # the first, in which both import, does not count
                for unit in units
            ]
        )[len(units) :]
    print("| worker | CPU ms for a clip | of the thread that converts | page faults |\n|---|---|---|---|")
    for way, values in zip(("pool", "Dask"), np.median(found, axis=0), strict=True):
        print(f"| {way} | {values[0]:.2f} | {values[1]:.2f} | {values[2]:.1f} |")
    ratios = np.median(found[:, 0] / found[:, 1], axis=0)
    print(f"clips per CPU second on Dask, of those in the pool, median of {len(found)} units in turns: {ratios[0]:.3f}")


if __name__ == "__main__":
    main()
