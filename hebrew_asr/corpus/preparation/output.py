"""Write the prepared folder: manifests, the list of dropped clips, ``manifest.json``. Nothing in it depends on when,
where or with how many processes it was made."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import soundfile
import soxr

from hebrew_asr import __version__
from hebrew_asr.audio.source import Part
from hebrew_asr.cores import give_back_freed_memory
from hebrew_asr.corpus.preparation.assemble import Assembly, group_of
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record
from hebrew_asr.corpus.preparation.shards import pack_all, packed_clips, shards_of
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.data.clips import Clip, array_of
from hebrew_asr.data.manifest import index_manifest, row_of
from hebrew_asr.data.records import Records
from hebrew_asr.files import from_json, sha256_of, write_json, write_lines
from hebrew_asr.sources import Source
from hebrew_asr.text.normalize import NORMALIZER_VERSION
from hebrew_asr.text.prompt import build_target

DROPPED, WORK = "dropped.jsonl", ".work"
_ROW_BITS = 40
FORMAT = 1
"""Of manifest.json."""

_TEMPORARY = r"\.((train|eval)\.(jsonl|arrow)|dropped\.jsonl|manifest\.json)\.\d+\.tmp"
_CLIP = r"clips/[^/]+/\d{5,}/\d{6,}(-\d{2,})?\.(flac|wav)|clips/[^/]+/\d{5,}/\.\d{6,}(-\d{2,})?\.(flac|wav)\.\d+\.tmp"
_SHARD = r"data/(train|eval)-\d{5}-of-\d{5}\.parquet|data/\.(train|eval)-\d{5}-of-\d{5}\.parquet\.\d+\.tmp"
_OURS = re.compile(
    rf"(train|eval|dropped)\.jsonl|(train|eval)\.arrow|manifest\.json|_SUCCESS|{_TEMPORARY}|{_CLIP}|{_SHARD}"
    r"|\.work/(lock|job\.json|_SUCCESS|records\.arrow|(train|eval)\.(clips|sounds)|\.[^/]+\.\d+\.tmp"
    r"|parts/[^/]+/\.?\d{5,}-\d{7,}\.jsonl(\.\d+\.tmp)?"
    r"|sounds/[^/]+/\.?\d{5,}-\d{7,}\.flac(\.\d+\.tmp)?|at/[^/]+|seen-[0-9a-f]+|crashed/[^/]+/\d{5,}-\d{7,}/\d+)"
)


def is_of_prepare(relative: str) -> bool:
    """Whether ``prepare`` gives a file of its folder this name; anything else there is somebody's own."""
    return _OURS.fullmatch(relative) is not None


def write_set(
    folder: Path,
    assembly: Assembly,
    sources: list[Source],
    options: PrepareOptions,
    asked: dict[str, Any],
    workers: Workers,
) -> dict[str, Any]:
    """Write the manifests as JSON lines and Arrow files, dropped.jsonl and manifest.json, and delete audio that no
    manifest names.

    Args:
        asked: the options that decided the result, for the manifest.
        workers: pack shards, where there are any.

    Returns:
        The content of manifest.json.
    """
    hold_out = assembly.split.get("held_out_whole", "source")
    give_back_freed_memory()
    # The official script resolves paths against wherever it is started.
    root = folder.resolve() if options.audio == "wav" else None
    sides = {"train": assembly.train, "eval": assembly.eval}
    clips: Mapping[str, Iterable[Clip]] = {
        side: (_clip(record, hold_out, root) for record in records) for side, records in sides.items()
    }
    digests: dict[str, str] = {}
    if options.store == "shards":
        clips, digests = _into_shards(folder, sides, clips, workers)
    named = list(digests) or chain.from_iterable(records.values("audio") for records in sides.values())
    for side, records in sides.items():
        name = f"{side}.jsonl"
        digests[name] = write_lines(folder / name, map(row_of, clips[side]))
        if records:
            mapped = index_manifest(folder / name)
            digests[mapped.name] = sha256_of(mapped)
    digests[DROPPED] = write_dropped(folder, assembly.dropped)
    manifest = _manifest(assembly, sources, options.audio, asked) | {"sha256": digests}
    write_json(folder / "manifest.json", manifest)
    for temporary in folder.glob(".*.tmp"):  # of a killed run
        if is_of_prepare(temporary.name):
            temporary.unlink()
    delete_clips(folder, named)
    return manifest


def _into_shards(
    folder: Path, sides: dict[str, Records[Record]], clips: Mapping[str, Iterable[Clip]], workers: Workers
) -> tuple[Mapping[str, Iterable[Clip]], dict[str, str]]:
    """The clips as they lie in shards, and the SHA-256 of each shard by its path."""
    shards = {}
    for side, records in sides.items():  # in files that workers map: a shard that is sent to one says only where it is
        waiting = (Part(record.held, record.offset_bytes, record.size_bytes) for record in records)
        sounds = Records(Part, waiting, folder / WORK / f"{side}.sounds")
        shards[side] = shards_of(folder, side, Records(Clip, clips[side], folder / WORK / f"{side}.clips"), sounds)
    every = [shard for own in shards.values() for shard in own]
    packed = dict(zip((shard.path for shard in every), pack_all(every, workers), strict=True))
    placed = {
        side: (clip for shard in own for clip in packed_clips(shard, packed[shard.path], folder))
        for side, own in shards.items()
    }
    return placed, {path.relative_to(folder).as_posix(): found.sha256 for path, found in packed.items()}


def write_dropped(folder: Path, dropped: Iterable[Record]) -> str:
    """Write dropped.jsonl; returns its SHA-256."""
    return write_lines(folder / DROPPED, map(_dropped_row, dropped))


def is_list_of_dropped(path: Path) -> bool:
    """Whether a file is what :func:`write_dropped` writes: all that is left where no clip came of a preparation."""
    try:
        rows = [from_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return all({"id", "reason"} <= row.keys() for row in rows)
    except (OSError, ValueError, AttributeError):
        return False


def _clip(record: Record, hold_out: str, root: Path | None) -> Clip:
    audio = record.audio if root is None else str(root / record.audio)
    return Clip(audio, build_target(record.transcript), record.id, record.duration_s, group_of(record, hold_out))


def _dropped_row(record: Record) -> dict[str, Any]:
    names = ("id", "reason", "detail", "duration_s", "transcript")
    return {name: value for name in names if (value := getattr(record, name))}


def _manifest(assembly: Assembly, sources: list[Source], audio: str, asked: dict[str, Any]) -> dict[str, Any]:
    kept = (assembly.train, assembly.eval)
    samples = hashlib.sha256()
    for side in kept:
        for fingerprint in side.values("fingerprint"):
            samples.update(fingerprint.encode())
    return {
        "format": FORMAT,
        "sources": [
            {
                "name": source.name,
                "revision": source.revision,
                "shards": len(source.shards),
                "bytes": sum(shard.size_bytes for shard in source.shards),
                "recordings": _num_rows(source.name, assembly),
                **_tally(record.duration_s for record in chain(*kept) if record.id.startswith(f"{source.name}/")),
            }
            for source in sources
        ],
        "train": _tally(assembly.train.values("duration_s")),
        "eval": _tally(assembly.eval.values("duration_s")),
        "dropped": drop_table(assembly.dropped),
        "split": assembly.split,
        "audio": {
            "format": audio,
            "sample_rate_hz": 16_000,
            "bytes": sum(int(side.column("size_bytes").sum()) for side in kept),
            "sha256_of_fingerprints": samples.hexdigest(),
        },
        "options": asked,
        "versions": versions(),
    }


def _num_rows(source: str, assembly: Assembly) -> int:
    """Rows of a source, whatever became of them."""
    places = [np.zeros(0, np.int64)]
    for records in (assembly.train, assembly.eval, assembly.dropped):
        numbers, names = records.coded("id", until="/")
        own = records.where(numbers == names.index(source)) if source in names else None
        places += [(own.column("shard") << _ROW_BITS) + own.column("row")] if own is not None else []
    return len(array_of(np.concatenate(places), pyarrow.int64()).unique())


def versions() -> dict[str, str]:
    """Of what decides the bytes of clips and texts."""
    return {
        "hebrew_asr": __version__,
        "normaliser": NORMALIZER_VERSION,
        "soundfile": version("soundfile"),
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
    }


def _tally(durations_s: Iterable[float]) -> dict[str, Any]:
    held = array("d", durations_s)
    return {"clips": len(held), "hours": round(sum(held) / 3600, 4)}


def drop_table(dropped: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """For each reason, most frequent first: how many clips, and hours where the audio was decoded."""
    by_reason: dict[str, array[float]] = defaultdict(partial(array, "d"))
    for record in dropped:
        by_reason[record.reason].append(record.duration_s)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return {reason: _tally(durations_s) for reason, durations_s in ordered}


def delete_clips(folder: Path, kept: Iterable[str]) -> None:
    """Delete clips and shards that ``prepare`` made but those ``kept``, by path in ``folder``, and empty folders."""
    names: dict[str, bytearray] = defaultdict(bytearray)
    for above, _, name in (path.rpartition("/") for path in kept):
        names[above] += f"{name}/".encode()
    for root in (folder / "clips", folder / "data"):
        for place, folders, files in os.walk(root, topdown=False):
            above = Path(place).relative_to(folder).as_posix()
            links = [name for name in folders if Path(place, name).is_symlink()]
            for name in {*files, *links}.difference(names[above].decode().split("/")):
                if is_of_prepare(f"{above}/{name}"):
                    (folder / above / name).unlink()
            if not any(Path(place).iterdir()) and not Path(place).is_symlink():
                Path(place).rmdir()
