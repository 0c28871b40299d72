"""READ what people bring: the Hugging Face hub, parquet shards, or a folder of recordings; rows come out.

Imports text and audio.
"""

from __future__ import annotations

import re
from pathlib import Path

from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.sources.folder import LISTING_SUFFIXES, open_folder
from hebrew_asr.sources.hub import HUB_ID, open_hub
from hebrew_asr.sources.parquet import open_parquet
from hebrew_asr.sources.rows import Row, Shard, Source, Unit, unit_name

__all__ = [
    "PUBLIC_TEST_SETS",
    "PUBLIC_TEST_SOURCES",
    "Row",
    "Shard",
    "Source",
    "Unit",
    "is_local",
    "open_source",
    "source_name",
    "unit_name",
]

PUBLIC_TEST_SETS = frozenset(("ivrit-ai/eval-d1", "ivrit-ai/eval-whatsapp", "ivrit-ai/saspeech", "upai-inc/saspeech"))
"""Datasets of the Hebrew leaderboard that hold nothing but test data (run_bench.py of ivrit-ai/asr-training)."""

PUBLIC_TEST_SOURCES = frozenset(("Mindset", "SmallBigHistory"))
"""Podcasts that ivrit.ai keeps for the test split of crowd-transcribe (upload-training-ds.py)."""


def open_source(spec: str, *, held_out: bool = False, pinned: str | None = None) -> Source:
    """Open a hub id, a folder of parquet shards, a folder of audio and text, or one parquet, JSONL, CSV or TSV file.

    Args:
        spec: a path that exists, or ``owner/name[:config][@revision]`` on the hub.
        held_out: all of it is test data: kept out of training, and so is what overlaps it.
        pinned: commit to use for a hub id that names none.

    Raises:
        UsageError: ``spec`` is neither, or asks to train on a public test set.
        DataError, EnvironmentProblem: it cannot be read, by name.
    """
    if is_local(spec):
        return _open_local(Path(spec).resolve(), source_name(spec), held_out)
    source_name(spec)
    if spec.partition("@")[0].partition(":")[0] in PUBLIC_TEST_SETS and not held_out:
        raise UsageError(f"--source {spec} is a public test set: training on it voids its scores. Give it to --exclude")
    return open_hub(spec, held_out=held_out, pinned=pinned)


def is_local(spec: str) -> bool:
    """Whether a source is a file or folder on this machine rather than a hub id."""
    return Path(spec).exists()


def source_name(spec: str) -> str:
    """Short name of a source, by which its clips are called. Raises UsageError when it can be no source."""
    if is_local(spec):
        path = Path(spec).resolve()
        return re.sub(r"[^\w.-]+", "-", path.name if path.is_dir() else path.stem)
    match = HUB_ID.fullmatch(spec)
    if match is None or spec.startswith("."):
        raise UsageError(f"source {spec}: no such file or folder, and not a hub id of the form owner/name")
    return match["repo"].split("/")[1]


def _open_local(path: Path, name: str, held_out: bool) -> Source:
    if path.is_dir():
        shards = sorted(path.rglob("*.parquet"))
        if shards:
            return open_parquet(name, shards, path, all_held_out=held_out)
        return open_folder(name, path, held_out=held_out)
    if path.suffix == ".parquet":
        return open_parquet(name, [path], path.parent, all_held_out=held_out)
    if path.suffix in LISTING_SUFFIXES:
        return open_folder(name, path, held_out=held_out)
    raise DataError(f"source {path}: neither a folder, nor a .parquet, {', '.join(LISTING_SUFFIXES)} file")
