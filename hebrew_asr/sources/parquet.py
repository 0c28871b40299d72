"""Parquet shards, on this machine or elsewhere: which rows they hold, and reading them without decoding any audio."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import pyarrow
from pyarrow.parquet import FileMetaData, ParquetFile

from hebrew_asr.errors import DataError
from hebrew_asr.remote.paths import RemotePath, path_of
from hebrew_asr.sources.columns import ADAPTERS, Place, choose_adapter
from hebrew_asr.sources.footer import RowGroups, row_groups
from hebrew_asr.sources.rows import ROWS_PER_UNIT, Row, Source, Unit, is_held_out

FILE_NAME = "file_name"
"""Column of the paths of recordings, in a table that holds none: ``metadata.parquet`` of ``datasets``' folders."""
_TAIL_BYTES = 64 * 1024
_BUFFER_BYTES = 1 << 18
"""Read at once of each column; else pyarrow reads all that a row group has of it."""
_BATCH_BYTES, _MOST_ROWS_OF_BATCH = 1 << 20, 32
"""About as much is copied out of the file at once. Four times as much takes 1.7 times as long for each row: its memory
is new to the process every time."""
_MOST_KEPT_BYTES = 48 << 20
"""Of a row group. Arrow's own pool keeps what is freed; without it each clip of wav costs 300 page faults, a fifth of
its time. Of larger groups it keeps too much: a worker had 308 MiB, and 277 with the system's pool."""


@dataclass(frozen=True)
class ParquetUnit:
    """Consecutive row groups of one parquet file."""

    dataset: str
    shard: int
    first_row: int
    num_rows: int
    held_out: bool
    path: str
    adapter: str
    columns: tuple[str, ...]
    """The ones to read. A footer that was asked for its schema stays until Python's cyclic garbage is collected."""
    groups: RowGroups

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Rows with their position in the shard. Raises DataError when the file cannot be read."""
        adapter = next(adapter for adapter in ADAPTERS if adapter.name == self.adapter)
        path, position = path_of(self.path), self.first_row
        try:
            footer = self.groups.footer(path)
            sizes = [footer.row_group(group).total_byte_size for group in range(footer.num_row_groups)]
            with (
                path.open("rb") if isinstance(path, RemotePath) else nullcontext(path) as opened,
                _opened(opened, footer, max(sizes)) as file,
            ):
                at_once = max(1, min(_MOST_ROWS_OF_BATCH, _BATCH_BYTES * self.num_rows // max(sum(sizes), 1)))
                for batch in file.iter_batches(at_once, columns=self.columns, use_threads=False):
                    for row in batch.to_pylist():
                        row.setdefault("audio", row.get(FILE_NAME))
                        yield position, adapter.convert(row, Place(f"{self.shard:05d}-{position:06d}", path.parent))
                        position += 1
        except DataError as error:
            raise DataError(f"source {self.dataset}, file {path.name}: {error}") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"source {self.dataset}: cannot read {path}: {error}. Fetch the file again") from error


def _opened(file: Path | BinaryIO, footer: FileMetaData, largest_bytes: int) -> ParquetFile:
    """A file whose largest row group unpacks to so many bytes; its memory comes from the pool that is set meanwhile."""
    usual = pyarrow.default_memory_pool()
    if largest_bytes > _MOST_KEPT_BYTES:
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        return ParquetFile(file, metadata=footer, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    finally:
        pyarrow.set_memory_pool(usual)


@dataclass(frozen=True)
class FileShard:
    """A parquet file that is read in place, on this machine or elsewhere."""

    dataset: str
    index: int
    path: Path | RemotePath
    name: str
    held_out: bool

    bytes_to_download = 0

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def units(self) -> list[Unit]:
        """Units of whole row groups, about ``ROWS_PER_UNIT`` rows each."""
        return self._units

    @cached_property  # a file of 200,000 row groups takes two minutes
    def _units(self) -> list[Unit]:
        return parquet_units(self.dataset, self.index, self.path, self.held_out)


def parquet_units(dataset: str, shard: int, path: Path | RemotePath, held_out: bool) -> list[Unit]:
    """Cut one parquet file into units. Raises DataError when it is unreadable or its columns are unknown."""
    try:
        found = row_groups(path, ROWS_PER_UNIT)
        present = _columns_of(found[0].footer(path))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot open parquet file {path}: {error}. Is it whole? Fetch it again") from error
    is_named = FILE_NAME in present and "audio" not in present
    adapter = choose_adapter([*present, *["audio"] * is_named], where=f"source {dataset}, file {path.name}")
    columns = (*adapter.columns_in(present), *[FILE_NAME] * is_named)
    units: list[Unit] = []
    place, first_row = path.url if isinstance(path, RemotePath) else str(path), 0
    for groups in found:
        units.append(
            ParquetUnit(dataset, shard, first_row, groups.rows, held_out, place, adapter.name, columns, groups)
        )
        first_row += groups.rows
    return [unit for unit in units if unit.num_rows]


def open_parquet(
    name: str, paths: Sequence[Path | RemotePath], root: Path | RemotePath, *, all_held_out: bool
) -> Source:
    """A source of parquet files; test and validation shards are told by their names (``is_held_out``)."""
    names = [str(path.relative_to(root)) for path in paths]  # type: ignore[arg-type]
    content = hashlib.sha256()
    for path, shard in zip(paths, names, strict=True):
        content.update(f"{shard}\0{path.stat().st_size}\0".encode() + _tail_of(path))
    shards = tuple(
        FileShard(name, index, path, shard, all_held_out or is_held_out(shard))
        for index, (path, shard) in enumerate(zip(paths, names, strict=True))
    )
    return Source(name, f"sha256:{content.hexdigest()}", shards)


def _tail_of(path: Path | RemotePath) -> bytes:
    """The end of a parquet file, where its row counts and offsets are: cheap evidence of its content."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return stream.read()


def _columns_of(footer: FileMetaData) -> list[str]:
    """Top-level columns, and the dotted paths of leaves inside structs."""
    leaves = [footer.schema.column(index).path for index in range(len(footer.schema))]
    return list(dict.fromkeys([*footer.schema.to_arrow_schema().names, *leaves]))
