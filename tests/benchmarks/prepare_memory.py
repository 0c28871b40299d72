"""What memory and time ``prepare`` takes, by the rows and row groups of a parquet file; prints a table in Markdown.

    python tests/benchmarks/prepare_memory.py [--rows 10000 50000 200000] [--groups 1 100 1000]

Each file has the schema of crowd-transcribe-v5, and clips of half a second, so that what counts is the file and not its
sound. It is prepared by one worker process. The peaks are the kernel's own (VmHWM), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import corpora
from tests.support.tiny_task import ROOT

_ROWS_AT_ONCE = 1000
_SOUNDS = 64
_CLIP_S = 0.5


def write_file(path: Path, rows: int, group: int) -> None:
    """Rows with texts of their own; their sounds recur, so nearly all of them fall out as duplicates at the end."""
    sounds = [corpora.encode(corpora.voice(seed, _CLIP_S, 16_000), 16_000, "flac") for seed in range(_SOUNDS)]
    with pq.ParquetWriter(path, corpora.CROWD_TRANSCRIBE) as file:
        for start in range(0, rows, _ROWS_AT_ONCE):
            made = [
                corpora.crowd_row(
                    f"Source{i % 40}/ep{i % 400}/{i}",
                    i,
                    text=f"שלום עולם {i}",
                    content=sounds[i % _SOUNDS],
                    duration_s=_CLIP_S,
                )
                for i in range(start, min(start + _ROWS_AT_ONCE, rows))
            ]
            file.write_table(pa.Table.from_pylist(made, corpora.CROWD_TRANSCRIBE), row_group_size=group)


def measure(source: Path, out: Path) -> tuple[float, int, int]:
    """Seconds that ``prepare`` takes, and the peaks of its worker and of the process that started it, in bytes."""
    command = [sys.executable, "-m", "hebrew_asr.cli", "prepare", "--source", str(source), "--out", str(out)]
    started = time.perf_counter()
    job = subprocess.Popen(
        [*command, "--processes", "1"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peaks: dict[int, int] = {}
    while job.poll() is None:
        for process in (job.pid, *children_of(job.pid)):
            peaks[process] = max(peaks.get(process, 0), peak_bytes(process))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    assert job.stderr is not None
    if job.returncode:
        sys.exit(job.stderr.read())
    return seconds, max(peak for process, peak in peaks.items() if process != job.pid), peaks[job.pid]


def children_of(process: int) -> list[int]:
    """Processes that a process has started and that still run."""
    try:
        lists = [task.read_text() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for line in lists for child in line.split()]


def peak_bytes(process: int) -> int:
    """Most memory that a process ever had resident; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="rows of a file")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 100, 1_000], help="rows of a row group")
    parser.add_argument("--scratch", type=Path, help="folder for the files, which are made anew")
    arguments = parser.parse_args()
    print("| rows | rows in a group | file, MiB | of which footer | seconds | worker, MiB | parent, MiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for rows in arguments.rows:
        for group in arguments.groups:
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
                source = Path(scratch) / "crowd.parquet"
                write_file(source, rows, group)
                with source.open("rb") as file:
                    file.seek(-8, os.SEEK_END)
                    footer_bytes = int.from_bytes(file.read(4), "little")
                seconds, worker, parent = measure(source, Path(scratch) / "out")
                sizes = [source.stat().st_size, footer_bytes]
            figures = [f"{size / 2**20:.0f}" for size in (*sizes, worker, parent)]
            print(
                f"| {rows:,} | {group:,} | {figures[0]} | {figures[1]} | {seconds:.0f} | {figures[2]} | {figures[3]} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
