"""Predict the disk space that a run needs, before it starts."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from hebrew_asr.audio.decode import quiet_decoders
from hebrew_asr.corpus.preparation.convert import convert_ahead
from hebrew_asr.corpus.preparation.crashes import rows_noted
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import part_path, read_part
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.files import nearest_existing
from hebrew_asr.sources import Source, Unit, unit_name
from hebrew_asr.units import gib

_SAMPLE_ROWS = 24
_SAMPLE_BYTES = 2**25  # a few hours of coded sound
_MARGIN = 1.1
_BYTES_PER_FILE = 4096 + 512  # half a block lost at its end, and the rest for its inode and its manifest lines


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that are still to come, about."""

    downloads: int
    """Into the hub's cache folder."""
    clips: int
    """Into the prepared folder."""


def require_disk(
    sources: list[Source], options: PrepareOptions, folder: Path, work: Path, workers: Workers
) -> DiskNeed:
    """Predict the need from the first rows of each source, and compare it with what is free.

    Raises:
        EnvironmentProblem: there is too little room, a source cannot be read, or the worker process was killed.
        DataError: a source cannot be read.
    """
    cache = _cache_folder()
    _require({cache: _downloads(sources)})  # before the first shards are fetched to look into them
    copies = 2 if options.store == "shards" else 1  # sound waits in its unit's file until all shards are written
    clips = copies * sum(_clip_bytes(source, options, work, workers) for source in sources)
    kept = (folder / "clips", folder / "data", work / "sounds")  # by a run that was interrupted
    present = sum(path.stat().st_size for root in kept for path in root.rglob("*.*"))
    need = DiskNeed(_downloads(sources), max(0, round(_MARGIN * clips) - present))
    _require({cache: need.downloads, folder: need.clips})
    return need


def _downloads(sources: list[Source]) -> int:
    return sum(shard.bytes_to_download for source in sources for shard in source.shards)


def _clip_bytes(source: Source, options: PrepareOptions, work: Path, workers: Workers) -> float:
    shards = [shard for shard in source.shards if not shard.held_out]
    units = shards[0].units() if shards else []
    if not units:
        return 0.0
    # The bytes of a shard, unlike its rows, are known before it is downloaded.
    scale = sum(shard.size_bytes for shard in shards) / max(shards[0].size_bytes, 1)
    return scale * sum(unit.num_rows for unit in units) * _bytes_per_row(units[0], options, work, workers)


def _bytes_per_row(unit: Unit, options: PrepareOptions, work: Path, workers: Workers) -> float:
    """Of its clips where it is done; else of its first rows, by a worker: a damaged file may end what decodes it."""
    if (part := part_path(work, unit_name(unit))).exists():
        kept = [record.size_bytes for record in read_part(part) if record.fate == "kept"]
        return (sum(kept) + _BYTES_PER_FILE * len(kept)) / unit.num_rows
    while True:
        try:
            return workers.submit(_sampled_bytes_per_row, unit, options, work).result()
        except BrokenExecutor:
            workers.set_aside()


def _sampled_bytes_per_row(unit: Unit, options: PrepareOptions, work: Path) -> float:
    sizes, heard_bytes = [], 0
    with quiet_decoders():
        for position, row in itertools.islice(rows_noted(unit, work), _SAMPLE_ROWS):
            heard_bytes += row.size_bytes
            sizes.append(sum(len(clip) + _BYTES_PER_FILE for clip in convert_ahead(row, unit, position, options)))
            if heard_bytes > _SAMPLE_BYTES:
                break
    return sum(sizes) / max(len(sizes), 1)


def _require(needs: dict[Path, int]) -> None:
    """Places on the same disk share its free space."""
    by_disk: dict[int, list[Path]] = {}
    for path in needs:
        by_disk.setdefault(nearest_existing(path).stat().st_dev, []).append(path)
    for paths in by_disk.values():
        need = sum(needs[path] for path in paths)
        free = shutil.disk_usage(nearest_existing(paths[-1])).free
        if need > free:
            raise EnvironmentProblem(
                f"not enough disk space: about {gib(need)} are needed in {' and '.join(map(str, paths))}, {gib(free)} "
                "are free. Free some space, or choose other folders (--out; HF_HOME for downloads)"
            )


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
