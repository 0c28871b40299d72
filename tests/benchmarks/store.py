"""Ways to keep clips, by how fast they are read: files, parquet read in place or by row groups, tar with an index.

    python -m tests.benchmarks.store FOLDER [--clips 20000] [--cold]

The clips are noise in flac, 4.6 s on average. Only reading is timed, in CPU and wall seconds for each 1,000 clips: in
random order, as training does, and in the order of the store. Cold: after dropping the page cache, which needs root.
Then clips are read and decoded as in a loader's process, 64 a step, from files and from shards in turns.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet

from hebrew_asr.audio.source import Part, opened
from hebrew_asr.cores import keep_freed_memory
from hebrew_asr.corpus.preparation.shards import pack, packed_clips, shards_of
from hebrew_asr.data.clip_audio import read_ahead, read_clip
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.planning.bench_corpus import make_corpus

_STEPS_PER_ROUND, _CLIPS_PER_STEP = 3, 64


def read(sound: str | Part) -> bytes:
    """What training does before it decodes."""
    with opened(sound, "") as found:
        return found.read_at(0, found.size)


def timed(name: str, clips: int, work: Callable[[], object], cold: bool) -> None:
    """Print a line of the table."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    started, used = time.monotonic(), os.times()
    work()
    wall, now = time.monotonic() - started, os.times()
    cpu = now.user + now.system - used.user - used.system
    print(
        f"| {name} | {'cold' if cold else 'warm'} | {1e6 * cpu / clips:.1f} | {1e6 * wall / clips:.1f} |",
        flush=True,
    )


def decoded(ways: dict[str, list[Clip]], pages: list[str], rounds: int, cold: bool) -> None:
    """Print how many clips are read and decoded in a second from shards, of those from files, by rounds in turns."""
    rng, found = np.random.default_rng(1), []
    for number in range(rounds):
        order, row = rng.permutation(len(ways["files"]))[: _STEPS_PER_ROUND * _CLIPS_PER_STEP], {}
        for name in list(ways)[:: 1 if number % 2 else -1]:
            for path in pages if cold else ():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started, used = time.monotonic(), time.process_time()
            for step in np.split(order, _STEPS_PER_ROUND):
                clips = [ways[name][index] for index in step.tolist()]
                read_ahead(clips)
                for clip in clips:
                    read_clip(clip)
            row[name] = (time.process_time() - used, time.monotonic() - started)
        found.append([row["files"], row["shards"]])
    cpu, wall = np.median(np.array(found)[:, 0] / np.array(found)[:, 1], axis=0)
    ms = np.median(np.array(found)[:, :, 0], axis=0) * 1e3 / (_STEPS_PER_ROUND * _CLIPS_PER_STEP)
    told = f"{ms[0]:.2f} and {ms[1]:.2f} CPU ms for a clip of files and shards; in a CPU second {cpu:.3f} times as many"
    print(f"decoded, {'cold' if cold else 'warm'}: {told} from shards, in a second {wall:.3f} times", flush=True)


def main() -> None:
    """Make the stores, print the table, and how the two stores of ``prepare`` compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--cold", action="store_true", help="also with a page cache that is dropped before each line")
    arguments = parser.parse_args()
    folder = arguments.folder
    if not (folder / "train.jsonl").is_file():
        make_corpus(folder, arguments.clips)
    files = read_manifest(folder / "train.jsonl")
    sounds = [Part(clip.audio, 0, Path(clip.audio).stat().st_size) for clip in files]
    shards = shards_of(folder, "train", files, sounds)
    inside = [clip for shard in shards for clip in packed_clips(shard, pack(shard), folder)]
    places = [Part(str(folder / clip.audio), clip.offset_bytes, clip.size_bytes) for clip in inside]
    tar = folder / "train.tar"
    if not tar.is_file():
        with tarfile.open(tar, "w") as archive:
            for clip in files:
                archive.add(clip.audio, Path(clip.audio).name)
    with tarfile.open(tar) as archive:
        started = time.monotonic()
        members = [Part(str(tar), member.offset_data, member.size) for member in archive]
        print(f"an index of the tar takes {time.monotonic() - started:.2f} s to make")
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    group_of = np.repeat(np.arange(-(-len(files) // 256)), 256)[: len(files)]
    parquet = pyarrow.parquet.ParquetFile(shards[0].path)

    def row_groups(rows: Iterable[int]) -> None:
        for row in rows:
            parquet.read_row_group(int(group_of[row]), columns=["audio"])["audio"][row % 256].as_py()

    def all_of(places: list, rows: Iterable[int]) -> None:
        for row in rows:
            read(places[row])

    print("| way | cache | CPU ms per 1,000 clips | wall ms per 1,000 clips |\n|---|---|---|---|")
    for cold in (False, True) if arguments.cold else (False,):
        timed("files, random", len(files), lambda: all_of([clip.audio for clip in files], order), cold)
        timed("parquet shard in place, random", len(files), lambda: all_of(places, order), cold)
        timed("tar in place, random", len(files), lambda: all_of(members, order), cold)
        timed("parquet by row groups, random", 200, lambda: row_groups(order[:200]), cold)
        timed("files, in order", len(files), lambda: all_of([clip.audio for clip in files], range(len(files))), cold)
        timed("parquet shard in place, in order", len(files), lambda: all_of(places, range(len(files))), cold)
        timed("tar in place, in order", len(files), lambda: all_of(members, range(len(files))), cold)
        timed(
            "parquet through pyarrow, in order",
            len(files),
            lambda: [b.num_rows for b in parquet.iter_batches(256, columns=["audio"])],
            cold,
        )
    keep_freed_memory()  # as a loader's process does
    ways = {"files": files, "shards": [replace(clip, audio=str(folder / clip.audio)) for clip in inside]}
    pages = list(dict.fromkeys(clip.audio for clips in ways.values() for clip in clips))
    for cold in (False, True):
        decoded(ways, pages, 40, cold)


if __name__ == "__main__":
    main()
