"""How ``--help`` shows a command: texts wrapped where the terminal ends, and only defaults that say something.

tyro draws it all but the description, whose lines it neither wraps nor keeps.
"""

from __future__ import annotations

import inspect
import io
import os
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

_SAYS_NOTHING = ("None", "False", "True", "", "''")
"""Defaults of options that are empty unless given, and of switches."""
_WIDEST = 100
"""Columns of a paragraph: longer lines are hard to follow."""


class Screen(io.TextIOWrapper):
    """Holds what is printed, as it looks on standard output."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), sys.stdout.encoding, "backslashreplace")
        self._colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org

    def isatty(self) -> bool:
        """Whether to color."""
        return self._colored

    def text(self) -> str:
        """All that was printed."""
        self.seek(0)
        return self.read()


def option_texts(options: type) -> ConstructorRegistry:
    """tyro's rules, but for the texts of a command's dataclass."""
    from tyro.constructors import MISSING_NONPROP, ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    usual = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(options, MISSING_NONPROP, in_union_context=False))
    assert isinstance(usual, StructConstructorSpec)
    plain = replace(usual, fields=tuple(_plain(field) for field in usual.fields))
    registry = ConstructorRegistry()
    registry.struct_rule(lambda info: plain if info.type is options else None)
    registry.primitive_rule(lambda info: _path() if info.type is Path else None)
    return registry


def _path() -> Any:
    """tyro's rule, but an empty text stays one, so that it can be refused: ``Path("")`` is the current folder."""
    from tyro.constructors import PrimitiveConstructorSpec

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(words[0]) if words[0] else "",
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def _plain(field: Any) -> Any:
    """tyro's field, its text in one piece and without a default that says nothing."""
    import tyro

    def text() -> str:
        said = field.helptext() if callable(field.helptext) else field.helptext
        return _in_one_line(said or "")

    hint = tyro.conf.arg(help_behavior_hint=lambda default: "" if default in _SAYS_NOTHING else f"(default: {default})")
    return replace(field, type=Annotated[field.type, hint], helptext=text)


def with_description(drawn: str, options: type) -> str:
    """The help that tyro drew, with the docstring of a command's dataclass below the usage.

    Paragraphs are wrapped. A paragraph that begins with ``$`` holds examples, each with a remark in brackets or none.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    usage, _, boxes = drawn.partition("\n\n")
    paragraphs = inspect.cleandoc(options.__doc__ or "").split("\n\n")
    return "\n\n".join([usage, *(_wrapped(paragraph, width) for paragraph in paragraphs), boxes.strip("\n")])


def _wrapped(paragraph: str, width: int) -> str:
    if not paragraph.startswith("$ "):
        return textwrap.fill(_in_one_line(paragraph), width)
    lines: list[str] = []
    for line in paragraph.splitlines():
        if line.startswith(("$ ", "(")):
            lines.append(line)
        else:
            lines[-1] += f" {line}"
    return "\n".join(
        line
        if line.startswith("$")
        else textwrap.fill(line[1:-1], width, initial_indent="    ", subsequent_indent="    ")
        for line in lines
    )


def _in_one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
