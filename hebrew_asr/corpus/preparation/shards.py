"""The clips of a set in a few large files, for file systems that bear no millions of small ones.

A shard is a parquet file of the hub's form: ``datasets.load_dataset(folder)`` and the hub's viewer open it. Its sound
is neither compressed nor encoded a second time, so each clip lies in it in one piece, and the manifest says where:
training reads a clip with one read at a known place, and needs no parquet for it.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from hebrew_asr.audio.frames import SAMPLE_RATE_HZ
from hebrew_asr.audio.source import Part, opened
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.data.clips import Clip
from hebrew_asr.files import atomic, sha256_of
from hebrew_asr.streams import tracked

SHARD_BYTES = 1 << 30
"""Of sound, at most; one clip at least. Few files even for thousands of hours, and small enough to be sent again."""
_CLIPS_PER_GROUP = 256
"""Of a row group, 15 MB of sound: what a reader of parquet holds at once."""
_FEATURES = {
    "id": {"dtype": "string", "_type": "Value"},
    "audio": {"sampling_rate": SAMPLE_RATE_HZ, "_type": "Audio"},
    "text": {"dtype": "string", "_type": "Value"},
    "duration_s": {"dtype": "float64", "_type": "Value"},
    "group": {"dtype": "string", "_type": "Value"},
}
_SCHEMA = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "audio": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        "text": pyarrow.string(),
        "duration_s": pyarrow.float64(),
        "group": pyarrow.string(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_SOUND = "audio.bytes"
_OTHERS = ("id", "audio.path", "text", "duration_s", "group")


@dataclass(frozen=True)
class Shard:
    """A shard and what belongs into it."""

    path: Path
    folder: Path
    """Of the set: paths of ``sounds`` start there."""
    clips: Sequence[Clip]
    """In order; their ``audio`` is the name that they have in the shard."""
    sounds: Sequence[Part]
    """Where each clip is now."""


@dataclass(frozen=True)
class Packed:
    """A shard that is written."""

    offsets: array[int]
    """Where each clip's sound begins."""
    sha256: str


def shards_of(folder: Path, side: str, clips: Sequence[Clip], sounds: Sequence[Part]) -> list[Shard]:
    """Deal the clips of a side to shards, in order: a function of their sizes alone."""
    bounds, room = [0], SHARD_BYTES
    for index, sound in enumerate(sounds):
        room -= sound.size_bytes
        if room < 0 and index > bounds[-1]:
            bounds.append(index)
            room = SHARD_BYTES - sound.size_bytes
    spans = list(zip(bounds, [*bounds[1:], len(clips)], strict=True)) if clips else []
    paths = (folder / f"data/{side}-{number:05d}-of-{len(spans):05d}.parquet" for number in range(len(spans)))
    return [Shard(path, folder, clips[a:b], sounds[a:b]) for path, (a, b) in zip(paths, spans, strict=True)]


def pack_all(shards: list[Shard], workers: Workers) -> list[Packed]:
    """Write the shards that are not there yet, several at a time. The workers have ended then.

    Raises:
        EnvironmentProblem: a worker was killed.
        OSError: the disk is full or not writable.
    """
    while True:
        try:
            with workers:
                futures = [workers.submit(pack, shard) for shard in shards]
                return [future.result() for future in tracked(futures, "packing", transient=True)]
        except BrokenExecutor:
            workers.set_aside()


def pack(shard: Shard) -> Packed:
    """Write a shard, unless it is there with just these clips."""
    offsets = _offsets(shard) if shard.path.is_file() else None
    if offsets is None:
        _write(shard)
        offsets = _offsets(shard)
        assert offsets is not None, f"{shard.path} does not hold what was written to it"
    return Packed(offsets, sha256_of(shard.path))


def packed_clips(shard: Shard, packed: Packed, folder: Path) -> Iterator[Clip]:
    """The clips of a shard as the manifest of ``folder`` names them."""
    audio = shard.path.relative_to(folder).as_posix()
    for clip, offset, sound in zip(shard.clips, packed.offsets, shard.sounds, strict=True):
        yield replace(clip, audio=audio, offset_bytes=offset, size_bytes=sound.size_bytes)


def _write(shard: Shard) -> None:
    with (
        atomic(shard.path) as stream,
        pyarrow.parquet.ParquetWriter(
            stream,
            _SCHEMA,
            compression={_SOUND: "none"} | dict.fromkeys(_OTHERS, "zstd"),
            use_dictionary=["group"],
            write_statistics=["id", "duration_s", "group"],
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        for pairs in _groups(zip(shard.clips, shard.sounds, strict=True)):
            rows = [
                {name: getattr(clip, name) for name in ("id", "text", "duration_s", "group")}
                | {"audio": {"bytes": _content(shard, sound), "path": clip.audio}}
                for clip, sound in pairs
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, _SCHEMA))


def _offsets(shard: Shard) -> array[int] | None:
    """Where each clip lies in a shard; None if it does not hold just these, in this order, each in one piece.

    A plain page holds its values whole, each after its length (parquet-format, Encodings.md), so that between two clips
    there is at most the header of a page.
    """
    try:
        footer = pyarrow.parquet.read_metadata(shard.path)
    except (pyarrow.ArrowException, OSError):
        return None
    if footer.num_rows != len(shard.clips) or not footer.schema.to_arrow_schema().equals(_SCHEMA):
        return None
    offsets = array("q")
    groups = _groups(zip(shard.clips, shard.sounds, strict=True))
    with shard.path.open("rb") as file:
        for number, pairs in enumerate(groups):
            group = footer.row_group(number)
            columns = (group.column(index) for index in range(group.num_columns))
            column = next(column for column in columns if column.path_in_schema == _SOUND)
            file.seek(column.data_page_offset)
            chunk, position = file.read(column.total_compressed_size), 0
            for _, sound in pairs:
                content = _content(shard, sound)
                position = chunk.find(struct.pack("<I", len(content)) + content, position)
                if position < 0:
                    return None
                offsets.append(column.data_page_offset + position + 4)
                position += 4 + len(content)
    return offsets


def _groups(pairs: Iterable[tuple[Clip, Part]]) -> Iterator[list[tuple[Clip, Part]]]:
    rest = iter(pairs)
    while group := list(islice(rest, _CLIPS_PER_GROUP)):
        yield group


def _content(shard: Shard, sound: Part) -> bytes:
    with opened(replace(sound, path=str(shard.folder / sound.path)), str(sound)) as found:
        return found.read_at(0, found.size)
