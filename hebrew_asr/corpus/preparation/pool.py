"""Run units in worker processes, as their shards arrive; stop at the first failure and say what is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ThreadPoolExecutor, wait
from pathlib import Path

from hebrew_asr.corpus.preparation.convert import UnitSummary, convert_unit
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import part_path
from hebrew_asr.corpus.preparation.progress import Progress
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.sources import Shard, Unit, unit_name

_DOWNLOADS_AT_ONCE = 4


def shards_in_order(shards: list[Shard]) -> Iterator[list[Unit]]:
    """Units of each shard, in order; the next few shards download meanwhile."""
    downloads = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download")
    try:
        yield from downloads.map(lambda shard: shard.units(), shards)
    finally:
        downloads.shutdown(wait=False, cancel_futures=True)


def convert_all(
    shards: list[Shard], options: PrepareOptions, folder: Path, work: Path, progress: Progress, workers: Workers
) -> list[list[Unit]]:
    """Convert every unit that has no part yet; returns the units of each shard. The workers have ended then.

    A row whose decoding ends a worker process is set aside, and the rest goes on in new ones.

    Raises:
        EnvironmentProblem: a worker was killed, or the hub cannot be reached.
        DataError: a source cannot be read.
        OSError: a worker could not write, as on a full disk.
    """
    while True:
        try:
            with workers:
                return _convert_all(shards, options, folder, work, progress, workers)
        except BrokenExecutor:
            workers.set_aside()
            progress.begin_again()


def _convert_all(
    shards: list[Shard], options: PrepareOptions, folder: Path, work: Path, progress: Progress, workers: Workers
) -> list[list[Unit]]:
    units: list[list[Unit]] = []
    futures: list[Future[UnitSummary]] = []
    failed = threading.Event()

    def finished(future: Future[UnitSummary]) -> None:
        if future.cancelled() or future.exception() is not None:
            failed.set()
        else:
            progress.add(future.result())

    for shard, units_of_shard in zip(shards, shards_in_order(shards), strict=True):
        units.append(units_of_shard)
        progress.expect(sum(unit.num_rows for unit in units_of_shard), shard.size_bytes)
        for unit in units_of_shard:
            if part_path(work, unit_name(unit)).exists():
                progress.skip(unit.num_rows)
            else:
                futures.append(workers.submit(convert_unit, unit, options, folder, work))
                futures[-1].add_done_callback(finished)
        if failed.is_set():
            break
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        future.result()
    return units
