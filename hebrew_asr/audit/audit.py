"""``audit``: decode and check every clip of a prepared set, and say so as a page and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from hebrew_asr.audit.checks import PROBLEM_KINDS, Problem, describe
from hebrew_asr.audit.columns import (
    Measured,
    Suspect,
    chars_per_s,
    charset,
    find_problems,
    find_suspects,
    measure_all,
    shared_of,
)
from hebrew_asr.data.clips import Clips, compute, values_of
from hebrew_asr.data.manifest import holds_clips, open_manifest
from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json, sha256_of
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.remote.joined import changed_tables, joined_sets
from hebrew_asr.remote.paths import NotThere, RemotePath, path_of

SIDES = ("train", "eval")
_UNDECODED = {
    "audio": "no clip was decoded, so whether every file decodes is not known",
    "duration": "no clip was decoded, so nothing says whether durations are as the manifest says",
    "duplicate audio": "no clip was decoded, so a recording may occur twice under two names",
    "two texts": "no clip was decoded, so equal recordings may have two texts",
    "leak": "training and evaluation share no group, sentence or name of a recording; no sound was compared",
}
"""What an audit without decoding cannot tell."""


@dataclass(frozen=True)
class Audit:
    """Everything that was found."""

    folder: Path
    measured: Measured
    problems: list[Problem]
    suspects: list[Suspect]
    charset: list[tuple[str, int, str]]
    """Character, count, id of the first clip with it."""
    shared: dict[str, int]
    """For each kind of key, how many are on both sides."""
    unchecked: dict[str, str]
    """For each kind of problem that could not be looked for, or not wholly: why not, in words."""
    manifest: dict[str, Any]
    """manifest.json of ``prepare``; empty for a folder of another making, which may have a file of this name too."""

    @property
    def clean(self) -> bool:
        """Nothing was found that must not be there. Suspects are no problems."""
        return not self.problems


def audit(place: str | Path, *, processes: int | None = None, suspects: int = 40, decodes: bool = True) -> Audit:
    """Decode and check all clips of ``train.jsonl`` and, if there is one, ``eval.jsonl``.

    Args:
        place: folder or URL of the set.
        processes: worker processes; one per usable core by default.
        suspects: how many odd clips to list.
        decodes: without it, only what manifests say is checked, and no sound is read.

    Raises:
        DataError: a manifest is missing, or some of its lines are wrong (the first five are named).
        UsageError, EnvironmentProblem: there is no set at the URL, or its server does not answer.
    """
    folder = set_folder(place)
    sides = {
        side: open_manifest(folder / f"{side}.jsonl", check_audio=False, allow_outside=True)
        for side in SIDES
        if side == "train" or holds_clips(folder / f"{side}.jsonl")
    }
    measured = measure_all(sides, processes, decodes=decodes)
    manifest, shared = _manifest_of(folder), shared_of(measured)
    return Audit(
        folder=folder,
        measured=measured,
        problems=[*_file_problems(path_of(str(place)), folder, manifest), *find_problems(measured, shared)],
        suspects=find_suspects(measured, suspects),
        charset=charset(measured),
        shared={kind: len(values) for kind, values in shared.items()},
        unchecked=_unchecked(folder, measured, manifest),
        manifest=manifest,
    )


def _unchecked(folder: Path, measured: Measured, manifest: dict[str, Any]) -> dict[str, str]:
    unknown = {}
    if not manifest and not joined_sets(folder):
        why = "manifest.json is not of prepare" if (folder / "manifest.json").is_file() else "there is no manifest.json"
        unknown["files"] = f"{why}, so nothing says which files prepare wrote"
    unknown |= {} if measured.is_decoded else _UNDECODED
    alone = sum(_alone(clips) for clips in measured.sides.values())
    alone = manifest.get("split", {}).get("clips_without_group", alone)
    if "eval" not in measured.sides:
        unknown["leak"] = "there are no evaluation clips, so training and evaluation cannot share anything"
    elif alone:
        shared = "no recording and no sentence" if measured.is_decoded else "no sentence and no name of a recording"
        unknown["leak"] = (
            f"training and evaluation share {shared}, but may share a speaker: nothing says who "
            f"speaks in {alone:,} of {len(measured.found.rows):,} clips (a speaker, session or source column, or a "
            "sub-folder each)"
        )
    return unknown


def _alone(clips: Clips) -> int:
    """How many clips have no group but their own id."""
    group, identity = clips.column("group"), clips.column("id")
    return int(values_of(compute.or_(compute.equal(group, ""), compute.equal(group, identity))).sum())


class _Dropped(BaseModel):
    clips: int
    hours: float


class _Split(BaseModel):
    method: str
    leaky: bool
    seed: int
    keys_in_train_and_eval: dict[str, int] = {}
    clips_without_group: int = 0


class _Options(BaseModel):
    min_chars_per_s: float
    max_chars_per_s: float


class _Prepared(BaseModel):
    """What is read of the manifest.json of ``prepare``, which holds more."""

    sha256: dict[str, str]
    dropped: dict[str, _Dropped] = {}
    split: _Split | None = None
    options: _Options | None = None


def _manifest_of(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    try:
        _Prepared.model_validate(found)
    except ValidationError:
        return {}
    return found


def _file_problems(place: Path | RemotePath, folder: Path, manifest: dict[str, Any]) -> list[Problem]:
    """Whether the files are those that ``prepare`` wrote, in a folder that it finished; ``folder`` holds the tables."""
    changed = changed_tables(folder, *SIDES)
    joined = [
        Problem("files", f"{where}/{name}", f"{change}: it is not what was joined") for where, name, change in changed
    ]
    if not manifest:
        return joined
    problems = [] if (folder / "_SUCCESS").is_file() else [Problem("files", "_SUCCESS", "preparation did not end")]
    for name, digest in manifest["sha256"].items():
        try:
            if sha256_of(place / name) != digest:
                problems.append(Problem("files", name, "was changed after prepare wrote it"))
        except (FileNotFoundError, NotThere):
            problems.append(Problem("files", name, "is missing"))
    return problems


def as_json(found: Audit) -> dict[str, Any]:
    """The figures and every problem, for programs to read."""
    return {
        "clean": found.clean,
        "sides": {side: _statistics(found.measured, side) for side in SIDES},
        "problem_counts": {kind: sum(p.kind == kind for p in found.problems) for kind in PROBLEM_KINDS},
        "problems": [{"kind": p.kind, "id": p.clip_id, "detail": p.detail} for p in found.problems],
        "unchecked": found.unchecked,
        "keys_in_train_and_eval": found.shared,
        "suspects": [
            {"id": s.clip.id, "audio": s.clip.audio, "score": round(s.score, 3), "reasons": s.reasons}
            for s in found.suspects
        ],
        "charset": [
            {"character": character, "name": describe(character), "count": count, "first": first}
            for character, count, first in found.charset
        ],
        "formats": _formats(found.measured),
    }


def _formats(measured: Measured) -> dict[str, int]:
    """How many clips have which rate and channels, in the order in which they occur first."""
    rows = measured.found.rows
    rows = rows[rows["decodes"] & (rows["rate_hz"] > 0)][["rate_hz", "channels"]]
    kinds, first, counts = np.unique(rows, return_index=True, return_counts=True)
    return {
        f"{kinds[kind]['rate_hz']} Hz, {kinds[kind]['channels']} channels": int(counts[kind])
        for kind in np.argsort(first).tolist()
    }


def _statistics(measured: Measured, side: str) -> dict[str, Any]:
    rows = measured.side(side)
    whole = rows[rows["decodes"]]
    heard = whole if measured.is_decoded else whole[:0]
    return {
        "clips": len(rows),
        "hours": round(float(whole["duration_s"].sum()) / 3600, 4),
        "groups": num_groups(measured, side),
        "words": int(rows["words"].sum()),
        "duration_s": quantiles(whole["duration_s"]),
        "chars_per_s": quantiles(chars_per_s(whole)),
        "level_db": quantiles(heard["level_db"]),
        "speech_share": quantiles(heard["speech_s"] / np.maximum(heard["duration_s"], 1e-3)),
    }


def num_groups(measured: Measured, side: str) -> int:
    """How many groups a side has; clips without one are one of them."""
    clips = measured.sides.get(side)
    return 0 if clips is None else compute.count_distinct(clips.column("group")).as_py()


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Minimum, 5 %, median, 95 % and maximum; empty without values."""
    if not len(values):
        return {}
    points = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    return {name: round(float(v), 3) for name, v in zip(("min", "p05", "median", "p95", "max"), points, strict=True)}
