"""``audit``: decode and check every clip of a prepared set, and say so as a page and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hebrew_asr.audit.checks import (
    PROBLEM_KINDS,
    Problem,
    Suspect,
    charset,
    describe,
    find_problems,
    find_suspects,
    shared_of,
)
from hebrew_asr.audit.clips import Measured, measure_all
from hebrew_asr.data.manifest import has_manifest, read_manifest
from hebrew_asr.errors import DataError
from hebrew_asr.files import sha256_of
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.remote.paths import NotThere, RemotePath, path_of

SIDES = ("train", "eval")


@dataclass(frozen=True)
class Audit:
    """Everything that was found."""

    folder: Path
    clips: list[Measured]
    problems: list[Problem]
    suspects: list[Suspect]
    charset: list[tuple[str, int, str]]
    """Character, count, id of the first clip with it."""
    shared: dict[str, int]
    """For each kind of key, how many are on both sides."""
    unchecked: dict[str, str]
    """For each kind of problem that could not be looked for, or not wholly: why not, in words."""
    manifest: dict[str, Any]
    """manifest.json of ``prepare``; empty for a folder of another making."""

    @property
    def clean(self) -> bool:
        """Nothing was found that must not be there. Suspects are no problems."""
        return not self.problems

    def side(self, name: str) -> list[Measured]:
        """Clips of ``train`` or ``eval``."""
        return [clip for clip in self.clips if clip.side == name]


def audit(place: str | Path, *, processes: int | None = None, suspects: int = 40) -> Audit:
    """Decode and check all clips of ``train.jsonl`` and, if there is one, ``eval.jsonl``.

    Args:
        place: folder or URL of the set.
        processes: worker processes; one per usable core by default.
        suspects: how many odd clips to list.

    Raises:
        DataError: a manifest is missing, or some of its lines are wrong (the first five are named).
        UsageError, EnvironmentProblem: there is no set at the URL, or its server does not answer.
    """
    folder = set_folder(place)
    sides = {
        side: read_manifest(folder / f"{side}.jsonl", check_audio=False, allow_outside=True)
        for side in SIDES
        if side == "train" or _holds_clips(folder / f"{side}.jsonl")
    }
    clips = measure_all(sides, processes)
    manifest, shared = _manifest_of(folder), shared_of(clips)
    return Audit(
        folder=folder,
        clips=clips,
        problems=[*_file_problems(path_of(str(place)), folder, manifest), *find_problems(clips, shared)],
        suspects=find_suspects(clips, suspects),
        charset=charset(clips),
        shared={kind: len(values) for kind, values in shared.items()},
        unchecked=_unchecked(clips, manifest),
        manifest=manifest,
    )


def _holds_clips(path: Path) -> bool:
    """Whether there is anything in a manifest: ``prepare`` without an evaluation share writes an empty one."""
    return path.stat().st_size > 0 if path.is_file() else has_manifest(path)


def _unchecked(clips: Sequence[Measured], manifest: dict[str, Any]) -> dict[str, str]:
    unknown = {} if manifest else {"files": "there is no manifest.json, so nothing says which files prepare wrote"}
    alone = sum(clip.clip.group in ("", clip.clip.id) for clip in clips)
    alone = manifest.get("split", {}).get("clips_without_group", alone)
    if not any(clip.side == "eval" for clip in clips):
        unknown["leak"] = "there are no evaluation clips, so training and evaluation cannot share anything"
    elif alone:
        unknown["leak"] = (
            "training and evaluation share no recording and no sentence, but may share a speaker: nothing says who "
            f"speaks in {alone:,} of {len(clips):,} clips (a speaker, session or source column, or a sub-folder each)"
        )
    return unknown


def _manifest_of(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _file_problems(place: Path | RemotePath, folder: Path, manifest: dict[str, Any]) -> list[Problem]:
    """Whether the files are those that ``prepare`` wrote, in a folder that it finished; ``folder`` holds the tables."""
    if not manifest:
        return []
    problems = [] if (folder / "_SUCCESS").is_file() else [Problem("files", "_SUCCESS", "preparation did not end")]
    for name, digest in manifest.get("sha256", {}).items():
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
        "sides": {side: _statistics(found.side(side)) for side in SIDES},
        "problem_counts": {kind: sum(p.kind == kind for p in found.problems) for kind in PROBLEM_KINDS},
        "problems": [{"kind": p.kind, "id": p.clip_id, "detail": p.detail} for p in found.problems],
        "unchecked": found.unchecked,
        "keys_in_train_and_eval": found.shared,
        "suspects": [
            {"id": s.measured.clip.id, "audio": s.measured.clip.audio, "score": round(s.score, 3), "reasons": s.reasons}
            for s in found.suspects
        ],
        "charset": [
            {"character": character, "name": describe(character), "count": count, "first": first}
            for character, count, first in found.charset
        ],
        "formats": {
            f"{rate} Hz, {channels} channels": count
            for (rate, channels), count in Counter(
                (clip.sound.rate_hz, clip.sound.channels) for clip in found.clips if not clip.sound.fault
            ).items()
        },
    }


def _statistics(clips: Sequence[Measured]) -> dict[str, Any]:
    whole = [clip for clip in clips if not clip.sound.fault]
    return {
        "clips": len(clips),
        "hours": round(sum(clip.sound.duration_s for clip in whole) / 3600, 4),
        "groups": len({clip.clip.group for clip in clips}),
        "words": sum(len(clip.words.split()) for clip in clips),
        "duration_s": quantiles([clip.sound.duration_s for clip in whole]),
        "chars_per_s": quantiles([clip.chars_per_s for clip in whole]),
        "level_db": quantiles([clip.sound.level_db for clip in whole]),
        "speech_share": quantiles([clip.sound.speech_s / max(clip.sound.duration_s, 1e-3) for clip in whole]),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Minimum, 5 %, median, 95 % and maximum; empty without values."""
    if not values:
        return {}
    points = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    return {name: round(float(v), 3) for name, v in zip(("min", "p05", "median", "p95", "max"), points, strict=True)}
