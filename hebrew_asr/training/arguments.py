"""What a run is started with, and whether there is anything to do; needs neither torch nor a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from hebrew_asr.config.recipe import Recipe, as_begun, changes, load_recipe
from hebrew_asr.config.values import PositiveFloat, entries
from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json
from hebrew_asr.locks import FolderLock
from hebrew_asr.remote.paths import is_url

SUMMARY = "summary.json"
"""Written last, into the run directory: the run has trained all its steps and its model is there."""
_PLACES = ("model.path", "data.folder")
"""Weights and clips at these places are compared when the run is built, not here."""


def _resume_mode(values: Sequence[str]) -> str:
    """``--resume`` without a value means auto."""
    if len(values) > 1 or not {*values} <= {"auto", "never"}:
        raise ValueError("it takes auto, never, or nothing, which means auto")
    return values[0] if values else "auto"


_BARE_OR_MODE = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[{auto,never}]",
    instance_from_str=_resume_mode,
    is_instance=lambda value: value in ("auto", "never"),
    str_from_instance=lambda value: [value],
)


@dataclass
class RecipeArguments:
    """What is learned and on what: the options that every command about a run has in common."""

    ds: str
    """Hardware profile: the name of a shipped one (a100x8, h200x1, cpu, …), or a DeepSpeed JSON of your own."""
    recipe: str = "round2"
    """Recipe: a JSON file, or the name of a shipped one."""
    set: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """A change to the recipe, such as optimizer.weight_decay=0.1 or phases.0.epochs=1; may be given again."""

    def load_recipe(self) -> Recipe:
        """The recipe with its changes; see ``config.recipe.load_recipe`` for what it raises."""
        return load_recipe(self.recipe, self.set)


@dataclass
class DataArguments(RecipeArguments):
    """``RecipeArguments`` of a command that reads a prepared set."""

    ONCE: ClassVar[dict[str, str]] = {"data": "`hebrew-asr join A B --out BOTH` makes one set of several"}
    """Options that are refused where they stand twice, and what to do."""
    data: str | None = None
    """Folder or URL of a set (`hebrew-asr join` makes one of several); a shorthand of --set data.folder=DIR."""

    def shorthands(self) -> dict[str, str | float | None]:
        """What is given, by the recipe's key that it stands for; None where nothing is."""
        return {"data.folder": self.data}

    def refuse_no_set(self) -> None:
        """Raise DataError where ``data`` is a folder without a prepared set, and UsageError where it is a file."""
        from hebrew_asr.data.manifest import has_manifest
        from hebrew_asr.remote.cache import set_folder

        if self.data is not None and not is_url(self.data) and not has_manifest(set_folder(self.data) / "train.jsonl"):
            raise DataError(f"no prepared set in {self.data}: train.jsonl is missing; hebrew-asr prepare makes one")

    def load_recipe(self) -> Recipe:
        """The recipe with its changes, shorthands the last; see ``config.recipe.load_recipe`` for what it raises."""
        given = {key: value for key, value in self.shorthands().items() if value is not None}
        return load_recipe(self.recipe, [*self.set, *(f"{key}={json.dumps(value)}" for key, value in given.items())])


@dataclass
class TrainArguments(DataArguments):
    """Train Qwen3-ASR for Hebrew. Usually through the launcher:

    $ deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json
    """

    price_per_hour: PositiveFloat | None = None
    """What all machines cost, for the cost so far; a shorthand of --set logging.price_per_hour=PRICE."""
    run_dir: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Run directory; runs/<recipe name> unless given."""
    resume: Annotated[Literal["auto", "never"], _BARE_OR_MODE] = "never"
    """auto, or nothing: go on from the newest complete checkpoint in the run directory; start if there is none."""

    def shorthands(self) -> dict[str, str | float | None]:
        return {**super().shorthands(), "logging.price_per_hour": self.price_per_hour}

    def folder(self, recipe: Recipe) -> Path:
        """The run directory."""
        return Path(self.run_dir or f"runs/{recipe.name}")


def as_argv(options: Any, kind: type) -> list[str]:
    """The command line from which tyro parses the fields of ``kind`` as they are in ``options``."""
    argv = []
    for entry in entries(kind):
        name = next((mark.name for mark in entry.marks if hasattr(mark, "name")), entry.name.replace("_", "-"))
        value = getattr(options, entry.name)
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            text = str(item)
            argv += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return argv


def lock_of(folder: Path) -> FolderLock:
    """The first rank holds it while it trains."""
    return FolderLock(folder / "lock")


def finished(arguments: TrainArguments) -> str | None:
    """What to say of a run that is to be resumed and has nothing left to do; None for any other."""
    if arguments.resume != "auto":
        return None
    recipe = arguments.load_recipe()
    folder = arguments.folder(recipe)
    try:
        summary, before, facts = (
            from_json((folder / name).read_text(encoding="utf-8")) for name in (SUMMARY, "recipe.json", "run.json")
        )
        last = min(facts["total_steps"], recipe.max_steps or facts["total_steps"])
        is_done = (folder / "final").is_dir() and summary["steps"] >= last
        is_done = is_done and not changes(before, as_begun(recipe, before), counted=_PLACES)
    except (OSError, ValueError, KeyError, TypeError):  # no finished run; training checks the rest
        return None
    return f"{folder} is a finished run: {summary['steps']} steps, model in {folder / 'final'}" if is_done else None
