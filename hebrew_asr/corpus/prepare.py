"""Data preparation: sources in, one believable training set out; parallel, resumable, the same bytes every time."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hebrew_asr.corpus.preparation import summary
from hebrew_asr.corpus.preparation.assemble import Assembly, assemble
from hebrew_asr.corpus.preparation.cluster import Cluster
from hebrew_asr.corpus.preparation.disk import require_disk
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.output import (
    DROPPED,
    WORK,
    delete_clips,
    is_list_of_dropped,
    is_of_prepare,
    write_dropped,
    write_set,
)
from hebrew_asr.corpus.preparation.parts import Record, part_path, read_part
from hebrew_asr.corpus.preparation.pool import convert_all
from hebrew_asr.corpus.preparation.progress import Progress
from hebrew_asr.corpus.preparation.workers import Workers
from hebrew_asr.data.manifest import has_manifest
from hebrew_asr.data.records import Records
from hebrew_asr.errors import DataError, EnvironmentProblem, UsageError
from hebrew_asr.files import as_os_error, from_json, real_path, sync_folder, write_atomically, write_json
from hebrew_asr.locks import FolderLock, describe
from hebrew_asr.sources import Source, Unit, is_on_hub, open_source, source_name, unit_name

SUCCESS = "_SUCCESS"
"""Written last: a folder with it is complete."""

LEADERBOARD_TESTS = ("ivrit-ai/eval-d1", "ivrit-ai/eval-whatsapp")
"""Excluded by default when anything is fetched from the hub."""

_JOB = "job.json"
_OF_SPLIT = ("split", "hold_out", "eval_fraction", "seed", "group_by_name")  # what is converted is the same by any


def is_prepared(folder: str | Path) -> bool:
    """Whether preparation of ``folder`` ended well."""
    return (Path(folder) / SUCCESS).is_file()


def ensure_prepared(folder: str | Path, options: PrepareOptions | None = None) -> Path:
    """Prepare ``folder`` unless that is done; for a trainer to call on every rank, before any process group exists.

    One process prepares while the others that share the folder wait for its lock, however long. If it dies, even
    by SIGKILL, the kernel frees the lock and the next process continues its work. A folder of another making that
    holds a train.jsonl or train.arrow is left as it is.

    Args:
        folder: where the set belongs, or already is.
        options: how to make it; the Round 2 recipe by default. Its ``out`` is replaced by ``folder``.

    Returns:
        ``folder`` as a path.

    Raises:
        HebrewASRError: preparation failed, for the reason it names.
    """
    folder = Path(folder)
    own = has_manifest(folder / "train.jsonl") and not (folder / WORK).exists()
    if not is_prepared(folder) and not own:
        prepare(replace(options or PrepareOptions(), out=folder))
    return folder


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Make the folder ``options.out``, or continue it; if it is finished, only check that the same was asked for.

    Returns:
        The content of its manifest.json.

    Raises:
        UsageError: impossible options, or the folder holds something else.
        DataError: a source cannot be read, or nothing is left of it.
        EnvironmentProblem: the hub is out of reach, or the disk is too small or full.
    """
    options.check()
    if options.workers_on is not None:  # other machines start in other folders
        options = replace(options, out=real_path(options.out))
    folder, work = options.out, options.out / WORK
    was_ready = is_prepared(folder)
    with _write_errors_explained(folder):
        _refuse_foreign(folder)
        with _locked(work):
            if not is_prepared(folder):
                if not (work / SUCCESS).is_file():
                    _build(options, folder, work)
                _announce(folder, work)
    manifest = _read_json(folder / "manifest.json")
    _require_same(folder, manifest["options"], _asked(options))
    if was_ready:
        summary.print_ready(manifest, folder)
    return manifest


def _refuse_foreign(folder: Path) -> None:
    """Never mix a prepared set with files of another making, nor take another program's ``.work`` for ours."""
    if is_prepared(folder) or not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: name a folder, which is made if need be")
    found = _foreign_files(folder, folder / WORK)
    if found and not is_prepared(folder):  # another process may have ended meanwhile
        raise UsageError(
            f"{folder} holds {', '.join(found[:3])}, not made by prepare: choose another --out, or empty it"
        )


def _foreign_files(folder: Path, work: Path) -> list[str]:
    """What keeps ``prepare`` out of a folder. Once it has begun, that is only what it would delete with its work."""
    inside = (path for path in work.rglob("*") if path.is_symlink() or not path.is_dir())
    found = [name for name in (path.relative_to(folder).as_posix() for path in inside) if not is_of_prepare(name)]
    if not any((work / name).is_file() for name in (_JOB, SUCCESS)):
        others = [path.name for path in folder.iterdir() if path != work or not work.is_dir()]
        found += [] if others == [DROPPED] and is_list_of_dropped(folder / DROPPED) else others
    return sorted(found)


@contextmanager
def _locked(work: Path) -> Generator[None, None, None]:
    """Hold the folder's lock, waiting for it if need be."""
    lock = FolderLock(work / "lock")
    if not lock.take():
        holder = lock.holder()
        whose = describe(holder) if holder else "another process"
        print(f"prepare: {whose} is preparing {work.parent}; waiting for it", file=sys.stderr, flush=True)
        lock.take(wait=True)
    try:
        yield
    finally:
        if not (work / SUCCESS).is_file() and not _has_begun(work):  # all is done, or there is nothing to keep
            if not is_prepared(work.parent):
                delete_clips(work.parent, set())
            shutil.rmtree(work, ignore_errors=True)
        lock.release()


def _has_begun(work: Path) -> bool:
    """Whether there are converted rows to continue with."""
    return any(part.stat().st_size for part in (work / "parts").rglob("*.jsonl"))


@contextmanager
def _write_errors_explained(folder: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads what is printed
            raise
        again = ". What is done is kept: run the same command again to continue" if _has_begun(folder / WORK) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(f"the disk is full, writing to {folder}: free some space{again}") from error
        raise EnvironmentProblem(f"cannot write to {folder}: {as_os_error(error).strerror}{again}") from error


def _build(options: PrepareOptions, folder: Path, work: Path) -> None:
    sources, tests = _open_sources(options, work)
    everything = [*sources, *tests]
    shards = [shard for source in everything for shard in source.shards]
    assembly = None
    pool = Workers(options.processes, work) if options.workers_on is None else Cluster(options.workers_on, work)
    with pool as workers:
        summary.print_plan(everything, require_disk(sources, options, folder, work, workers), folder)
        while assembly is None:
            with Progress(sum(shard.size_bytes for shard in shards)) as progress:
                units = convert_all(shards, options, folder, work, progress, workers)
            assembly = _assembled([unit for of_shard in units for unit in of_shard], options, folder, work)
    manifest = write_set(folder, assembly, sources, options, _asked(options), workers)
    summary.print_result(manifest, folder)
    os.sync()  # clips are written without fsync, so all of them must reach the disk before the folder is announced
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    write_atomically(work / SUCCESS, f"{digest}\n")


def _open_sources(options: PrepareOptions, work: Path) -> tuple[list[Source], list[Source]]:
    """Open the sources and the test sets, at the revisions that an interrupted run had started with."""
    asked = _asked(options)
    job_file = work / _JOB
    job = _read_json(job_file) if _has_begun(work) else {"asked": asked, "revisions": {}}
    if not isinstance(job, dict) or not {"asked", "revisions"} <= job.keys():
        raise DataError(f"{job_file} is not of prepare: choose another --out")
    _require_same(options.out, job["asked"], asked, but=_OF_SPLIT)
    started: dict[str, str] = job["revisions"]
    sources = [open_source(spec, pinned=started.get(source_name(spec))) for spec in options.source]
    tests = [open_source(spec, held_out=True, pinned=started.get(source_name(spec))) for spec in _excluded(options)]
    revisions = {source.name: source.revision for source in (*sources, *tests)}
    changed = sorted(name for name, revision in started.items() if revisions.get(name) != revision)
    if changed:
        raise DataError(
            f"source {', '.join(changed)} changed since {options.out} was begun: delete that folder and start again"
        )
    for source in sources:
        if all(shard.held_out for shard in source.shards):
            names = ", ".join(shard.name for shard in source.shards[:3])
            raise DataError(f"source {source.name}: only test or validation data, by its file names ({names})")
    write_json(job_file, {"asked": asked, "revisions": revisions})
    return sources, tests


def _excluded(options: PrepareOptions) -> tuple[str, ...]:
    if options.exclude is not None:
        return options.exclude
    return LEADERBOARD_TESTS if any(map(is_on_hub, options.source)) else ()


def _asked(options: PrepareOptions) -> dict[str, Any]:
    """What decides the result, without any path of this machine."""
    sources = [source_name(spec) for spec in options.source]
    excluded = [source_name(spec) for spec in _excluded(options)]
    twice = [name for name, count in Counter((*sources, *excluded)).items() if count > 1]
    if tests := [name for name in sources if name in excluded]:
        raise UsageError(f"{tests[0]} is test data (--exclude), not to train on; hebrew-asr eval --set measures on it")
    if twice:
        raise UsageError(f"two sources are both named {twice[0]!r}; clips are called after them, so rename a folder")
    return {"source": sources, "exclude": excluded, **options.identity()}


def _require_same(folder: Path, was: dict[str, Any], asked: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    was = {"group_by_name": False, "store": "files"} | was  # options that sets of version 0.1.0 do not name
    differ = sorted(name for name in {*was, *asked}.difference(but) if was.get(name) != asked.get(name))
    if differ:
        changes = "; ".join(f"{name} was {was.get(name)!r}, now {asked.get(name)!r}" for name in differ)
        raise UsageError(f"{folder} was begun with other options ({changes}): delete it, or choose another --out")


def _assembled(units: list[Unit], options: PrepareOptions, folder: Path, work: Path) -> Assembly | None:
    """Assemble all parts; None when clips are damaged (a power cut), after their parts were deleted to redo them."""
    parts, sizes = [part_path(work, unit_name(unit)) for unit in units], []

    def found() -> Iterator[Record]:
        for path in parts:
            of_part = read_part(path)
            sizes.append(len(of_part))
            yield from of_part

    records = Records(Record, found(), work / "records.arrow")
    try:
        assembly = assemble(records, options)
    except DataError as error:
        fell_out = records.where(~records.equal("fate", "kept"))
        write_dropped(folder, fell_out)
        raise DataError(f"{error}. {folder / DROPPED} names each that fell out" if fell_out else str(error)) from error
    part_of = np.repeat(np.arange(len(parts)), sizes)
    damaged = {
        int(part_of[number])
        for side in (assembly.train, assembly.eval)
        for number, record in zip(side.numbers, side, strict=True)
        if not _is_whole(record, folder)
    }
    for number in damaged:
        parts[number].unlink()
    return None if damaged else assembly


def _is_whole(record: Record, folder: Path) -> bool:
    """Whether the sound of a clip is all there, by its file's size."""
    try:
        size = os.stat(f"{folder}/{record.held or record.audio}").st_size  # noqa: PTH116 (there are millions)
    except FileNotFoundError:
        return False
    return size >= record.offset_bytes + record.size_bytes if record.held else size == record.size_bytes


def _announce(folder: Path, work: Path) -> None:
    """Remove all but the result, then rename ``_SUCCESS`` into place; killed in between, the next call finishes."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (SUCCESS, "lock"):
            path.unlink()
    (work / SUCCESS).replace(folder / SUCCESS)
    sync_folder(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
