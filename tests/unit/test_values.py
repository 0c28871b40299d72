"""Every number that people write has bounds: generated from the fields, so that a new one without them fails here."""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from hebrew_asr.cli import COMMANDS, main
from hebrew_asr.config.options import check_options
from hebrew_asr.config.profiles import DeepSpeedKeys, Hardware
from hebrew_asr.config.recipe import Recipe, load_recipe
from hebrew_asr.config.values import entries, parse
from hebrew_asr.errors import UsageError

WRONG = [float("nan"), float("inf"), -float("inf"), -(10**9), -1e9, 10**30, 1e30]
NOT_NUMBERS = [True, "1", None, [1]]
WHOLE = {
    Recipe: load_recipe("round2").to_dict(),
    Hardware: {},
    DeepSpeedKeys: {"train_micro_batch_size_per_gpu": 1},
}


def places(hint: Any, wrong: Any) -> Iterator[Any]:
    """A value of the type with ``wrong`` in place of each number in it."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint in (int, float):
        yield wrong
    elif get_origin(hint) in (list, tuple):
        yield from ([value] for value in places(get_args(hint)[0], wrong))
    elif get_origin(hint) is dict:
        key, inner = get_args(hint)
        name = get_args(key)[0] if get_origin(key) is Literal else "head"
        yield from ({name: value} for value in places(inner, wrong))
    elif get_origin(hint) in (Union, types.UnionType):
        for inner in get_args(hint):
            yield from places(inner, wrong)


def with_wrong(kind: type, values: dict, wrong: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """``values`` with each number of the checked dataclass wrong in turn, by dotted key."""
    for entry in entries(kind):
        key = f"{path}{entry.name}"
        if entry.record is not None:
            inside = values[entry.name]
            first = inside[0] if isinstance(inside, list) else inside
            for name, changed in with_wrong(entry.record, first, wrong, f"{key}."):
                yield name, {**values, entry.name: [changed, *inside[1:]] if isinstance(inside, list) else changed}
        else:
            for value in places(entry.hint, wrong):
                yield key, {**values, entry.name: value}


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("wrong", [*WRONG, *NOT_NUMBERS], ids=repr)
def test_every_number_of_recipe_and_profile_has_bounds(kind, wrong):
    plain = json.loads(json.dumps(WHOLE[kind]))
    assert parse(kind, plain)[0] is not None
    tried = 0
    for key, values in with_wrong(kind, plain, wrong):
        if wrong is None and parse(kind, values)[0] is not None:
            continue  # what may be absent
        problems = parse(kind, values)[1]
        last = key.rpartition(".")[2]
        assert problems and all(last in problem for problem in problems), f"{key} accepts {wrong!r}"
        tried += 1
    assert tried >= {Recipe: 25, Hardware: 2, DeepSpeedKeys: 1}[kind]


def numeric_options() -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        command = importlib.import_module(f"hebrew_asr.commands.{name.replace('-', '_')}").Command
        for option, hint in get_type_hints(command, include_extras=True).items():
            if option in {field.name for field in fields(command)} and list(places(hint, 0)):
                yield name, option


@pytest.mark.parametrize(("name", "option"), numeric_options())
def test_every_number_of_every_command_has_bounds(name, option):
    command = importlib.import_module(f"hebrew_asr.commands.{name.replace('-', '_')}").Command
    hint = get_type_hints(command, include_extras=True)[option]
    needed = {f.name: "x" for f in fields(command) if f.default is MISSING and f.default_factory is MISSING}
    if "files" in needed:
        needed["files"] = ["x"]
    check_options(command(**needed))
    for wrong in WRONG:
        for value in places(hint, wrong):
            with pytest.raises(UsageError, match=f"^--{option.replace('_', '-')} "):
                check_options(command(**{**needed, option: value}))


@pytest.mark.parametrize(
    "line",
    [
        "plan --ds ds_configs/cpu.json --num-gpus -3",
        "plan --ds ds_configs/cpu.json --num-gpus 0",
        "plan --ds ds_configs/cpu.json --memory-gib nan",
        "eval --model x --data y --batch -1",
        "transcribe --model x --batch 0 y.wav",
        "audit x --processes 0",
        "audit x --processes 100000",
        "bench --ds x --steps 0",
        "train --ds x --master-port 0",
        "prepare --eval-fraction nan",
    ],
)
def test_one_line_and_exit_code_2(line, capsys):
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --") and " must be " in told and told.count("\n") == 1
