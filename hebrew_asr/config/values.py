"""Checks what people write in recipes, profiles and options.

Types and bounds stand beside each field, as pydantic's annotations. All mistakes are named at once, each in words and
with the nearest key that exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Interval

from hebrew_asr.errors import UsageError, first_line, nearest

CHECKED: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""``__pydantic_config__`` of a checked dataclass: no unknown key, no text for a number, no NaN, no infinity."""


class Freedom(Enum):
    """Written beside a field of a recipe that does not decide what is learned."""

    PLACE = "where something lies, or how many hands work on it"
    """May differ between ranks, and may change when a run is resumed."""
    CONDUCT = "how a run is named, watched, kept and ended"
    """Must be the same on all ranks, and may change when a run is resumed."""


@dataclass(frozen=True)
class Before:
    """Written beside a field of a recipe that is newer than some runs."""

    value: Any
    """What every run did before the field existed."""


Kind = TypeVar("Kind")
_MOST = 2**31 - 1
Count = Annotated[int, Interval(ge=0, le=_MOST)]
PositiveInt = Annotated[int, Interval(ge=1, le=_MOST)]
PositiveFloat = Annotated[float, Interval(gt=0, le=1e9)]
NonNegativeFloat = Annotated[float, Interval(ge=0, le=1e9)]
Share = Annotated[float, Interval(ge=0, le=1)]
Port = Annotated[int, Interval(ge=1, le=65535)]

OTHER_NAMES = {
    "lr": "learning_rates",
    "model": "model.path",
    "learning_rate": "learning_rates",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "clips_per_step",
    "effective_batch_size": "clips_per_step",
    "global_batch_size": "clips_per_step",
    "wd": "weight_decay",
    "warmup": "warmup_share",
    "warmup_ratio": "warmup_share",
    "grad_clip": "clip_grad_norm",
    "max_grad_norm": "clip_grad_norm",
    "num_workers": "workers",
}
"""What other trainers call a key of the recipe."""
_PLAIN = {
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid boolean": "true or false",
}


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of a file that exists.
        what: what the file is, for messages.

    Raises:
        UsageError: the file is unreadable, not JSON, no object, or gives a key twice.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path} is not JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{what} {path} must hold a JSON object, not {_shown(values)}")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given twice")
    return dict(pairs)


@cache
def _adapter(kind: type[Kind]) -> Any:
    from pydantic import TypeAdapter  # not above: a worker of prepare checks nothing, and would wait 0.1 s for it

    return TypeAdapter(kind)


def parse(kind: type[Kind], values: Any, inside: str = "") -> tuple[Kind | None, list[str]]:
    """A checked dataclass of plain JSON values, or None and every problem found, by dotted key (below ``inside``)."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(values)), []
    except ValidationError as error:
        return None, [_described(kind, item, inside) for item in error.errors()]


def parse_options(options: type[Kind], program: str, argv: list[str]) -> Kind:
    """A command's dataclass of options from its command line, within the bounds beside its fields.

    Raises:
        UsageError: some option does not exist or is out of bounds, or one of several values is given twice.
    """
    import tyro

    _refuse_unknown(options, program, argv)
    for option in _options_of_several_values(options):
        if argv.count(option) > 1:
            raise UsageError(f"{option} is given twice, and only the last would count: name all after one {option}")
    parsed = tyro.cli(options, prog=program, args=argv)
    check_options(parsed)
    return parsed


def _refuse_unknown(options: type, program: str, argv: list[str]) -> None:
    """tyro names the nearest option only where no other is missing, and in a box of ten lines.

    A command's ``ELSEWHERE`` says what stands for options of other tools, by their names with underscores.
    """
    known = {"help", *option_names(options)}
    known |= {f"no-{entry.name.replace('_', '-')}" for entry in entries(options) if entry.hint is bool}
    for word in argv[: argv.index("--") if "--" in argv else None]:
        name = word[2:].partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in known:
            elsewhere = getattr(options, "ELSEWHERE", {}).get(name.replace("-", "_"))
            if elsewhere:
                raise UsageError(f"{program} has no option --{name}: {elsewhere}")
            close = nearest(name, known)
            hint = f"did you mean --{close}?" if close else f"see {program} --help"
            raise UsageError(f"{program} has no option --{name} ({hint})")


def option_names(options: type) -> Iterator[str]:
    """How the fields of a command's dataclass are spelled after ``--``, with their other names."""
    for entry in entries(options):
        own = next((name for mark in entry.marks if (name := getattr(mark, "name", None))), None)
        yield own or entry.name.replace("_", "-")
        for mark in entry.marks:
            yield from (name[2:] for name in getattr(mark, "aliases", None) or () if name.startswith("--"))


def _options_of_several_values(options: type) -> Iterator[str]:
    """Those that take all their values at once, as ``--source a b``."""
    import tyro

    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        is_several = any(get_origin(one) in (list, tuple) for one in (kind, *get_args(kind)))
        if is_several and tyro.conf.UseAppendAction not in marks:
            yield f"--{name.replace('_', '-')}"


def check_options(options: Any) -> None:
    """Check the fields of a command's dataclass against the bounds beside them.

    Raises:
        UsageError: naming every option that is out of bounds.
    """
    problems = option_problems(options)
    if problems:
        raise UsageError("; ".join(problems))


def option_problems(options: Any) -> list[str]:
    """What ``check_options`` would raise, an option an entry."""
    from pydantic import TypeAdapter, ValidationError

    problems = []
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        if name not in {field.name for field in fields(options)}:
            continue
        try:
            TypeAdapter(hint, config={"allow_inf_nan": False}).validate_python(getattr(options, name))
        except ValidationError as error:
            problems += [f"--{name.replace('_', '-')} {complaint(item)}" for item in error.errors()]
    return problems


def unknown_key(key: str, known: Iterable[str], inside: str = "") -> str:
    """What to say about a key that does not exist.

    Args:
        key: as written.
        known: keys that exist there.
        inside: dotted key of what holds it.
    """
    known = list(known)
    close = nearest(key, known, 0.5)
    where = _dotted(inside, key)
    hint = f"did you mean {close}?" if close else f"there is {', '.join(sorted(known))}"
    return f"unknown key {where} ({hint})"


def _dotted(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _described(kind: type, item: Any, above: str) -> str:
    location = item["loc"]
    where = _dotted(above, *location)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        inside, key = location[:-1], str(location[-1])
        meant = OTHER_NAMES.get(key, key)
        elsewhere = [path for path in dotted_keys(kind) if meant in (path, path.rpartition(".")[2])]
        if elsewhere:
            return f"unknown key {where} (did you mean {_dotted(above, elsewhere[0])}?)"
        return unknown_key(key, _keys_at(kind, inside), _dotted(above, *inside))
    if item["type"] in ("missing", "missing_argument"):
        return f"{where} is missing"
    if location and location[-1] == "[key]":
        return unknown_key(item["input"], re.findall("'([^']+)'", item["msg"]), _dotted(above, *location[:-2]))
    return f"{where} {complaint(item)}" if where else complaint(item)


def complaint(item: Any) -> str:
    """What one of pydantic's errors says, to follow the name of what it is about."""
    if item["type"] in ("too_short", "string_too_short"):
        return "is empty"
    if item["type"] == "json_invalid":  # it comes from json.dumps, so only this can be wrong with it
        return "some text is not Unicode: it holds a lone surrogate"
    text = item["msg"]
    for theirs, ours in _PLAIN.items():
        text = text.replace(theirs, ours)
    return f"{text[0].lower()}{text[1:]}, not {_shown(item['input'])}"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(frozen=True)
class Entry:
    """A field of a checked dataclass."""

    name: str
    hint: Any
    """Its type, without annotations."""
    marks: tuple[Any, ...]
    """The annotations."""

    @property
    def record(self) -> Any:
        """The dataclass that it holds, or holds a list of; None for a plain value."""
        inner = get_args(self.hint)[0] if get_origin(self.hint) is list else self.hint
        return inner if is_dataclass(inner) else None


def entries(kind: type) -> Iterator[Entry]:
    """The fields of a checked dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        annotated = get_origin(hint) is Annotated
        yield Entry(field.name, get_args(hint)[0] if annotated else hint, get_args(hint)[1:] if annotated else ())


def dotted_keys(kind: type) -> Iterator[str]:
    """Every key of a checked dataclass and of those inside it, such as ``optimizer.weight_decay``.

    A key of a list is that of its first element: ``phases.0.epochs``.
    """
    for entry in entries(kind):
        yield entry.name
        if entry.record is not None:
            within = f"{entry.name}.0" if get_origin(entry.hint) is list else entry.name
            yield from (f"{within}.{inner}" for inner in dotted_keys(entry.record))


def _keys_at(kind: type, location: tuple[Any, ...]) -> list[str]:
    """Keys of the dataclass that ``location`` leads to."""
    for part in location:
        if not isinstance(part, int):
            kind = next(entry.record for entry in entries(kind) if entry.name == part)
    return [entry.name for entry in entries(kind)]


def free_keys(kind: type, *freedoms: Freedom) -> set[str]:
    """Dotted keys of the fields that have one of these freedoms, sections included; an index in a list is left out."""
    found = set()
    for entry in entries(kind):
        if any(mark in freedoms for mark in entry.marks):
            found.add(entry.name)
        elif entry.record is not None:
            found |= {f"{entry.name}.{inner}" for inner in free_keys(entry.record, *freedoms)}
    return found


def completed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a checked dataclass, with what stands for each key that did not exist when they were written."""
    found = {entry.name: mark.value for entry in entries(kind) for mark in entry.marks if isinstance(mark, Before)}
    found |= values
    for entry in entries(kind):
        if entry.record is not None and isinstance(found.get(entry.name, {}), dict):
            found[entry.name] = completed(entry.record, found.get(entry.name, {}))
    return found


def flatten(values: Any, free: Collection[str] = (), above: str = "") -> dict[str, Any]:
    """Plain JSON values by dotted key.

    Args:
        values: objects and lists of objects are taken apart.
        free: keys from ``free_keys``, which are left out.
        above: dotted key of ``values``.
    """
    items = values.items() if isinstance(values, dict) else enumerate(values)
    found = {}
    for key, value in items:
        path = _dotted(above, key)
        if ".".join(part for part in path.split(".") if not part.isdigit()) in free:
            continue
        has_parts = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        found |= flatten(value, free, path) if has_parts else {path: value}
    return found


def value_text(flat: dict[str, Any], key: str) -> str:
    """A value of ``flatten`` as JSON, cut short where it is long; ``nothing`` where there is none."""
    return _cut(json.dumps(flat[key], ensure_ascii=False)) if key in flat else "nothing"
