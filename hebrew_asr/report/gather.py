"""Reads a run directory, whole or not: unfinished, resumed, stopped in the middle of a line, never evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

from hebrew_asr.data.clips import Clips
from hebrew_asr.data.manifest import open_manifest
from hebrew_asr.errors import DataError, EnvironmentProblem
from hebrew_asr.files import as_os_error, from_json, such_as_runs
from hebrew_asr.remote.cache import set_of_run
from hebrew_asr.report import records
from hebrew_asr.report.records import EvalRecord, Sample


@dataclass(frozen=True)
class Manifests:
    """The manifests that the recipe names, as they are now."""

    group_of: dict[str, str]
    """Speaker, session or source of each eval clip; '' where none is known."""
    audio_of: dict[str, str]
    """Path of each eval clip's audio file, which may be gone; '' where it has none of its own here."""
    train: Clips
    """Training clips: there may be millions."""


@dataclass(frozen=True)
class RunHistory:
    """Everything that a run directory says, in the order of steps."""

    folder: Path
    recipe: dict[str, Any]
    profile: dict[str, Any]
    facts: dict[str, Any]
    summary: dict[str, Any]
    steps: list[records.TrainRecord]
    evaluations: list[EvalRecord]
    proofs: list[records.PhaseRecord]
    checkpoints: list[records.CheckpointRecord]
    faults: list[records.FaultRecord]
    machines: list[records.MachineRecord]
    samples: dict[tuple[int, str], list[Sample]]
    """By (step, split); an evaluation may be without."""
    manifests: Manifests | None
    unreadable: dict[str, int]
    """Lines that could not be read, by file."""
    chosen: EvalRecord | None = None
    """The evaluation of the final model, where that is another one than the last step's."""

    @property
    def name(self) -> str:
        """The recipe's name, or the directory's."""
        return str(self.recipe.get("name") or self.folder.resolve().name)

    @cached_property
    def last_step(self) -> int:
        """Highest step of any record."""
        kinds = (self.steps, self.evaluations, self.proofs, self.checkpoints)
        return max((record.step for kind in kinds for record in kind), default=0)

    @property
    def planned_steps(self) -> int:
        """Steps that the run was to take; the last one seen where nothing says."""
        limits = (self.recipe.get("max_steps"), self.facts.get("total_steps"))
        return min((limit for limit in limits if limit), default=self.last_step)

    @property
    def final_title(self) -> str:
        """Which model the final one is, such as ``last (step 15)``."""
        final = self.summary.get("final")
        return str(final["model"]) if isinstance(final, dict) and "model" in final else f"last (step {self.last_step})"

    @property
    def is_finished(self) -> bool:
        """Whether the summary is there and is of these metrics, not of an earlier, shorter run of the directory."""
        return self.summary.get("steps", -1) >= self.last_step

    def group_of(self, sample: Sample) -> str:
        """Speaker, session or source of a clip; '' where it is not known, or the eval manifest is not at hand."""
        return self.manifests.group_of.get(sample.id, "") if self.manifests else ""


def read_run(folder: Path) -> RunHistory:
    """Read a run directory.

    Raises:
        DataError: ``folder`` is no run directory, or one of its JSON files is not JSON, or not of a run.
        EnvironmentProblem: a file of it, or its folder of samples, cannot be read.
    """
    try:
        return _read(folder)
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the run {folder}: {as_os_error(error).strerror}") from error


def _read(folder: Path) -> RunHistory:
    if not (folder / "metrics.jsonl").is_file():
        hint = f"give the folder that training wrote to{such_as_runs(folder)}"
        raise DataError(f"no run in {folder}: metrics.jsonl is missing; {hint}")
    unreadable: dict[str, int] = {}
    recipe = _json(folder / "recipe.json")
    events = _events(folder / "metrics.jsonl", unreadable)
    measured, summary = events["eval"], _json(folder / "summary.json")
    return RunHistory(
        folder=folder,
        recipe=recipe,
        profile=_json(folder / "deepspeed.json"),
        facts=_json(folder / "run.json"),
        summary=summary,
        steps=events["train"],
        evaluations=[record for record in measured if not record.is_of_chosen],
        proofs=events["phase"],
        checkpoints=events["checkpoint"],
        faults=events["fault"],
        machines=events["machine"],
        samples=_samples(folder / "samples", {record.key for record in measured}, unreadable),
        manifests=_manifests(folder, recipe.get("data", {}).get("folder")),
        unreadable=unreadable,
        chosen=_chosen(measured, summary),
    )


def _chosen(measured: list[EvalRecord], summary: dict[str, Any]) -> EvalRecord | None:
    """The record of the model that the summary calls the final one; a run that goes on has none any more."""
    final, step = summary.get("final"), summary.get("steps")
    kind = str(final.get("model")).split(" ", 1)[0] if isinstance(final, dict) else ""
    return next((one for one in measured if one.is_of_chosen and (one.split, one.step) == (kind, step)), None)


class _Phase(BaseModel):
    epochs: StrictFloat = 0
    learning_rates: dict[str, Any] = {}


class _Section(BaseModel):
    """Of sections of a recipe, what is read of one or another."""

    folder: StrictStr | None = None
    clip_grad_norm: StrictFloat | None = None
    price_per_hour: StrictFloat | None = None


class _Recipe(BaseModel):
    phases: list[_Phase] = []
    max_steps: StrictInt | None = None
    data: _Section = _Section()
    optimizer: _Section = _Section()
    logging: _Section = _Section()


class _Profile(BaseModel):
    zero_optimization: dict[str, Any] = {}
    bf16: dict[str, Any] = {}


class _Facts(BaseModel):
    devices: list[StrictStr] = []
    num_ranks: StrictInt | None = None
    train_clips: StrictInt | None = None
    train_hours: StrictFloat | None = None
    total_steps: StrictInt | None = None
    phase_starts: list[StrictInt] = []
    trainable_weights: dict[str, dict[str, StrictInt]] = {}


class _Rates(BaseModel):
    wer: StrictFloat


class _Final(BaseModel):
    compared: dict[str, _Rates] = {}


class _Summary(BaseModel):
    steps: StrictInt = 0
    seconds: StrictFloat | None = None
    final: _Final | None = None


_SHAPES: dict[str, type[BaseModel]] = {
    "recipe.json": _Recipe,
    "deepspeed.json": _Profile,
    "run.json": _Facts,
    "summary.json": _Summary,
}
"""What is read of these files; they may hold more."""


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is not there, as the summary of an unfinished run."""
    if not path.is_file():
        return {}
    try:
        value = from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); copy the run directory again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; copy the run directory again")
    try:
        _SHAPES[path.name].model_validate(value)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path}, {place}: training writes no such value; copy the run directory again") from error
    return value


_SAMPLE = TypeAdapter(Sample)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line.strip()]


def _events(path: Path, unreadable: dict[str, int]) -> dict[str, list[Any]]:
    """Records by event, in the order of steps; of two of the same step the later counts, as a resumed run redid it."""
    kept: dict[str, dict[tuple[Any, ...], records.Record]] = {event: {} for event in records.EVENTS}
    for line in _lines(path):
        try:
            record = records.from_row(from_json(line))
        except (ValueError, TypeError, KeyError):  # pydantic's error is a ValueError
            unreadable[path.name] = unreadable.get(path.name, 0) + 1
            continue
        if record is not None:
            key = (record.step, *(getattr(record, name, None) for name in ("split", "name", "kind")))
            kept[record.event][key] = record
    return {event: sorted(found.values(), key=lambda record: record.step) for event, found in kept.items()}


def _samples(
    folder: Path, wanted: set[tuple[int, str]], unreadable: dict[str, int]
) -> dict[tuple[int, str], list[Sample]]:
    """Samples of the evaluations on record; files that a resumed run has not come to again are left."""
    found: dict[tuple[int, str], list[Sample]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():  # glob passes over a folder that it cannot read
        match = re.fullmatch(r"step-(\d+)-(.+)\.jsonl", path.name)
        if match is None or (int(match[1]), match[2]) not in wanted:
            continue
        rows = []
        for line in _lines(path):
            try:
                rows.append(_SAMPLE.validate_json(line))
            except ValidationError:
                unreadable[path.name] = unreadable.get(path.name, 0) + 1
        found[int(match[1]), match[2]] = rows
    return found


def _manifests(run: Path, written: str | None) -> Manifests | None:
    """The run's manifests, if they are where training found them, or where the recipe says. Those of a set at a URL are
    as this machine read them last.
    """
    if written is None:
        return None
    folder = set_of_run(run, written, ask=False)
    evaluated, trained = _manifest(folder / "eval.jsonl"), _manifest(folder / "train.jsonl")
    if evaluated is None or trained is None:
        return None
    return Manifests(
        {clip.id: clip.group for clip in evaluated},
        {clip.id: clip.own_file for clip in evaluated},
        trained,
    )


def _manifest(path: Path) -> Clips | None:
    try:
        return open_manifest(path, check_audio=False, allow_outside=True)
    except DataError:
        return None  # moved or changed since; the page says that it could not be consulted
