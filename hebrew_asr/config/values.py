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

from annotated_types import Interval, MinLen

from hebrew_asr.errors import UsageError, first_line, nearest
from hebrew_asr.files import from_json

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
Processes = Annotated[int, Interval(ge=1, le=1024)]
PositiveFloat = Annotated[float, Interval(gt=0, le=1e9)]
NonNegativeFloat = Annotated[float, Interval(ge=0, le=1e9)]
Share = Annotated[float, Interval(ge=0, le=1)]
Port = Annotated[int, Interval(ge=1, le=65535)]
Name = Annotated[str, MinLen(1)]
"""Not empty, as a variable that a shell does not know."""

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
    """The JSON object in a file: UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: of a file that exists.
        what: what the file is, for messages.

    Raises:
        UsageError: the file is unreadable, not JSON, no object, or gives a key twice.
    """
    try:
        values = from_json(path.read_bytes(), _without_repeats)
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
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


def override_value(values: dict[str, Any], override: str) -> None:
    """Set a key of plain values as ``--set`` says it, ``a.b=value``; the value is JSON, or plain text.

    Raises:
        UsageError: it says no such thing.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value, for example --set optimizer.weight_decay=0.1, not {override!r}")
    try:
        value = from_json(text)
    except ValueError:
        value = text
    node: Any = values
    *parents, last = key.split(".")
    for part in parents:
        node = node[_place(key, part, node)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise UsageError(f"--set {key}: {part} is a value, it has no parts")
    if isinstance(node, list):
        node[_place(key, last, node)] = value
    else:
        node[last] = value


def _place(key: str, part: str, node: list[Any]) -> int:
    if not part.isdigit() or int(part) >= len(node):
        name = key.partition(f".{part}")[0]
        raise UsageError(f"--set {key}: {name} has no {part}; its parts are {name}.0 to {name}.{len(node) - 1}")
    return int(part)
