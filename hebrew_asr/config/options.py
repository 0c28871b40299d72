"""Command lines: a command's dataclass of options, checked; each mistake is one line.

Types, bounds and other names stand beside each field, as tyro's and pydantic's annotations.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from operator import ge, gt, le, lt
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from annotated_types import Interval, MinLen

from hebrew_asr.config.shown import Screen, option_texts, with_description
from hebrew_asr.config.values import Entry, Name, complaint, entries
from hebrew_asr.errors import UsageError, nearest

Kind = TypeVar("Kind")
ModelName = Annotated[Name, tyro.conf.arg(aliases=["-m"])]
Language = Annotated[str, tyro.conf.arg(aliases=["-l"])]
Out = Annotated[Kind, tyro.conf.arg(aliases=["-o"])]
"""Options that several commands have, under the same names."""
_OR_ADD = ", or give that too"
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number, such as 12.5"}


def parse_options(options: type[Kind], program: str, argv: list[str]) -> Kind:
    """A command's dataclass of options from its command line, within the bounds beside its fields.

    Raises:
        UsageError: some option does not exist or is out of bounds; or one is given twice that takes all of its values
            at once, or is in the command's ``ONCE``; or it has no effect beside the others, by the command's ``IDLE``.
    """
    _refuse_unknown(options, program, argv)
    for option in _options_of_several_values(options):
        if argv.count(option) > 1:
            raise UsageError(f"{option} is given twice, and only the last would count: name all after one {option}")
    for option, instead in getattr(options, "ONCE", {}).items():
        if sum(word == f"--{option}" or word.startswith(f"--{option}=") for word in argv) > 1:
            raise UsageError(f"--{option} is given twice, and only the last would count: {instead}")
    told, screen = io.StringIO(), Screen()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(screen):
            parsed = tyro.cli(
                options,
                prog=program,
                args=argv,
                description="",
                config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
                registry=option_texts(options),
            )
    except SystemExit as end:
        if not end.code:  # --help
            print(with_description(screen.text(), options))
            raise
        raise UsageError(_without_box(told.getvalue(), program)) from None
    _refuse_empty(parsed)
    check_options(parsed)
    _refuse_idle(parsed)
    return parsed


def _refuse_empty(options: Any) -> None:
    """Refuse an empty text, as of an unset variable of a shell, where that is not what stands unless one is given."""
    defaults = _defaults(options)
    for entry in entries(type(options)):
        value = getattr(options, entry.name)
        if "" in (value if isinstance(value, (list, tuple)) else [value]) and defaults[entry.name] != "":
            dashes = "" if tyro.conf.Positional in entry.marks else "--"
            raise UsageError(f"{dashes}{_own_name(entry)} is empty")


def _refuse_idle(options: Any) -> None:
    """Refuse an option that would be ignored.

    A command's ``IDLE`` says which, in lines such as ``really without push``, ``mode without json or out`` and
    ``hold-out with split=random``. An option with its default value is as one that is not given.
    """
    defaults = _defaults(options)

    def is_given(option: str) -> bool:
        name, _, value = option.replace("-", "_").partition("=")
        found = getattr(options, name)
        return found == value if value else found != defaults[name]

    for line in getattr(options, "IDLE", ()):
        option, beside, *others = line.replace(" or ", " ").split()
        if is_given(option) and any(map(is_given, others)) == (beside == "with"):
            said = " or ".join(f"--{other.replace('=', ' ')}" for other in others)
            raise UsageError(f"--{option} has no effect {beside} {said}: leave it out{_OR_ADD * (beside == 'without')}")


def _defaults(options: Any) -> dict[str, Any]:
    """What stands where an option is not given; MISSING for one that must be."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(options)
    }


def _without_box(box: str, program: str) -> str:
    """What tyro says in a box of ten lines, in one; the box is of blanks where stdout is not UTF-8."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", box)
    rows = [row[2:-1].rstrip() for row in plain.splitlines()[1:]]  # below its title
    text = " ".join(row.strip() for row in rows if not row.startswith(" " * 8))  # so far in stands an option's help
    parts = [part.strip() for part in re.split("[─-]{5,}", text) if part.strip()]
    parsing = re.match(r"Error parsing (?:\S*/)?(\S+): .*?('.*?')", parts[0])
    kind = re.search(r" (INT|FLOAT)\b", text)
    if parsing and kind:
        return f"{parsing[1]} must be {_NUMBERS[kind[1]]}, not {parsing[2]}"
    said = "; ".join(part for part in parts if not part.startswith(("For full helptext", "Argument helptext")))
    said = re.sub(r" (STR|PATH|INT|FLOAT)\b", "", said)  # of "-m STR, --model STR" the names
    return f"{said.removesuffix('.').replace('1 values', '1 value')} (see {program} --help)"


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
        yield _own_name(entry)
        for mark in entry.marks:
            yield from (name[2:] for name in getattr(mark, "aliases", None) or () if name.startswith("--"))


def _own_name(entry: Entry) -> str:
    own = next((name for mark in entry.marks if (name := getattr(mark, "name", None))), None)
    return own or entry.name.replace("_", "-")


def _options_of_several_values(options: type) -> Iterator[str]:
    """Those that take all their values at once, as ``--source a b``."""
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
    hints, problems = get_type_hints(type(options), include_extras=True), []
    names = {field.name for field in fields(options)}
    doubtful = [name for name in hints if name in names and not _surely_holds(hints[name], getattr(options, name))]
    if not doubtful:
        return []
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second, which most commands do without

    for name in doubtful:
        hint = hints[name]
        try:
            TypeAdapter(hint, config={"allow_inf_nan": False}).validate_python(getattr(options, name))
        except ValidationError as error:
            problems += [f"--{name.replace('_', '-')} {complaint(item)}" for item in error.errors()]
    return problems


def _surely_holds(hint: Any, value: Any) -> bool:
    """Whether a value has its type and keeps its bounds; False also where only pydantic can say."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _surely_holds(parts[0], value) and all(_keeps(mark, value) for mark in parts[1:])
    if kind in (Union, UnionType):
        return any(_surely_holds(part, value) for part in parts)
    if kind is tuple:
        return type(value) is tuple and parts[1:] == (...,) and all(_surely_holds(parts[0], item) for item in value)
    if kind is Literal:
        return type(value) is str and value in parts
    if hint is str:
        return type(value) is str and value.isascii()  # others may be no Unicode
    if hint is float:
        return type(value) is float and math.isfinite(value)
    return isinstance(value, Path) if hint is Path else hint in (bool, int, NoneType) and type(value) is hint


def _keeps(mark: Any, value: Any) -> bool:
    if isinstance(mark, MinLen):
        return len(value) >= mark.min_length
    if not isinstance(mark, Interval):
        return type(mark).__module__.startswith("tyro.")  # how it is written, not what it may be
    bounds = ((gt, mark.gt), (ge, mark.ge), (lt, mark.lt), (le, mark.le))
    return all(bound is None or holds(value, bound) for holds, bound in bounds)
