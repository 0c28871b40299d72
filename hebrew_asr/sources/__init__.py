"""READ what people bring: the hub, parquet shards here or at a URL, or a folder of recordings; rows come out.

Imports text, remote and audio.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError, UsageError, did_you_mean
from hebrew_asr.remote.paths import RemotePath, is_url
from hebrew_asr.sources.hub import HUB_ID, open_hub
from hebrew_asr.sources.listings import LISTING_SUFFIXES
from hebrew_asr.sources.parquet import open_parquet
from hebrew_asr.sources.rows import Row, Shard, Source, Unit, unit_name
from hebrew_asr.sources.walk import files_in

__all__ = [
    "PUBLIC_TEST_SETS",
    "PUBLIC_TEST_SOURCES",
    "Row",
    "Shard",
    "Source",
    "Unit",
    "is_local",
    "is_on_hub",
    "open_source",
    "source_name",
    "unit_name",
]

PUBLIC_TEST_SETS = frozenset(("ivrit-ai/eval-d1", "ivrit-ai/eval-whatsapp", "ivrit-ai/saspeech", "upai-inc/saspeech"))
"""Datasets of the Hebrew leaderboard that hold nothing but test data (run_bench.py of ivrit-ai/asr-training)."""

PUBLIC_TEST_SOURCES = frozenset(("Mindset", "SmallBigHistory"))
"""Podcasts that ivrit.ai keeps for the test split of crowd-transcribe (upload-training-ds.py)."""

_IN_CACHE = re.compile(r"/datasets--[^/]+?--(?P<name>[^/]+)/snapshots/[0-9a-f]+$")
"""A dataset as the hub's client keeps it, in a folder named by its commit."""


def open_source(spec: str, *, held_out: bool = False, pinned: str | None = None) -> Source:
    """Open a hub id, a folder of parquet shards, a folder of audio and text, or one parquet, JSONL, CSV or TSV file.

    Args:
        spec: a path that exists, the URL of a parquet file or of a folder of them, or
            ``owner/name[:config][@revision]`` on the hub.
        held_out: all of it is test data: kept out of training, and so is what overlaps it.
        pinned: commit to use for a hub id that names none.

    Raises:
        UsageError: ``spec`` is none of these, or asks to train on a public test set.
        DataError, EnvironmentProblem: it cannot be read, by name.
    """
    if is_local(spec):
        # Not resolved: in the hub's cache a file is a link to one with a hash for its name.
        return _open_local(Path(os.path.normpath(Path(spec).absolute())), source_name(spec), held_out)
    name = source_name(spec)
    if is_url(spec):
        return _open_url(RemotePath(spec), name, held_out)
    if spec.partition("@")[0].partition(":")[0] in PUBLIC_TEST_SETS and not held_out:
        raise UsageError(f"--source {spec} is a public test set: training on it voids its scores. Give it to --exclude")
    return open_hub(spec, held_out=held_out, pinned=pinned)


def is_on_hub(spec: str) -> bool:
    """Whether a source lies on the Hugging Face hub."""
    return spec.startswith("hf://") if is_url(spec) else not is_local(spec)


def is_local(spec: str) -> bool:
    """Whether a source is a file or folder on this machine."""
    return os.path.exists(spec)  # noqa: PTH110 (Path's raises for a name that is too long)


def source_name(spec: str) -> str:
    """Short name of a source, by which its clips are called. Raises UsageError when it can be no source."""
    if is_local(spec):
        path = Path(os.path.normpath(Path(spec).absolute()))
        cached = _IN_CACHE.search(path.as_posix()) if path.is_dir() else None
        return re.sub(r"[^\w.-]+", "-", cached["name"] if cached else path.name if path.is_dir() else path.stem)
    if is_url(spec):
        return re.sub(r"[^\w.-]+", "-", RemotePath(spec).name.removesuffix(".parquet"))
    for above in (Path(spec), *Path(spec).parents):
        if os.path.islink(above) and not is_local(str(above)):  # noqa: PTH114 (as above)
            where = f"{above} is " if above != Path(spec) else ""
            raise UsageError(f"source {spec}: {where}a link that leads nowhere (to {above.readlink()})")
    match = HUB_ID.fullmatch(spec)
    if match is None or spec.startswith("."):
        hint = did_you_mean(spec, _beside(Path(spec)))
        raise UsageError(f"source {spec[:200]}: no such file or folder{hint}, and not a hub id of the form owner/name")
    return match["repo"].split("/")[1]


def _beside(path: Path) -> list[str]:
    """What lies where ``path`` would."""
    try:
        return [str(other) for other in path.parent.iterdir()]
    except (OSError, ValueError):
        return []


def _open_url(path: RemotePath, name: str, held_out: bool) -> Source:
    tests = [test for test in PUBLIC_TEST_SETS if re.search(rf"/{re.escape(test)}([@/]|$)", str(path))]
    if tests and not held_out:
        raise UsageError(f"--source {path} is a public test set: training on it voids its scores. Give it to --exclude")
    is_file = path.name.endswith(".parquet")
    shards = [path] if is_file else [found for found in path.files() if found.name.endswith(".parquet")]
    if not shards:
        raise DataError(f"source {path}: no parquet files are there. Recordings are read on this machine only")
    return open_parquet(name, shards, path.parent if is_file else path, all_held_out=held_out)


def _open_local(path: Path, name: str, held_out: bool) -> Source:
    try:
        is_folder = path.is_dir()
        files = files_in(path) if is_folder else []
        shards = [found for found in files if found.suffix == ".parquet"]
        if shards:
            source = open_parquet(name, shards, path, all_held_out=held_out)
            are_named = all(found.name == "metadata.parquet" for found in shards)
            beside = 0 if are_named else sum(found.suffix.lower() in AUDIO_SUFFIXES for found in files)
            notes = (f"its parquet files are read, and {beside} recordings beside them are not",) if beside else ()
            return replace(source, notes=notes)
        if path.suffix == ".parquet" and not is_folder:
            return open_parquet(name, [path], path.parent, all_held_out=held_out)
        if is_folder or path.suffix.lower() in LISTING_SUFFIXES:
            from hebrew_asr.sources.folder import open_folder  # what reads parquet does without what texts are in

            return open_folder(name, path, held_out=held_out)
    except OSError as error:
        raise DataError(f"source {path}: cannot read {error.filename or 'it'}: {error.strerror or error}") from error
    kinds = f"neither a folder, nor a .parquet, {', '.join(LISTING_SUFFIXES)} file"
    raise DataError(f"source {path}: {kinds}. Unpack an archive first; of a recording give the folder")
