"""HTML and SVG as function calls: every string is escaped unless :func:`element` made it, so none can be forgotten."""

from __future__ import annotations

import html
from collections.abc import Container, Iterable
from typing import TypeAlias

_VOID = {"br", "col"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()

    def __html__(self) -> str:
        """What Jinja2 puts into a page as it is."""
        return self


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def element(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """One element. ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after another, without an element around them."""
    return Markup("".join(_render(child) for child in children))


def table(
    names: Iterable[str],
    rows: Child,
    *,
    numbers: Container[str] = (),
    caption: Markup | None = None,
    **attributes: str | None,
) -> Markup:
    """A table with a head of ``names``, of which those in ``numbers`` stand over figures; ``rows``: of its body."""
    head = element("tr", [element("th", name, class_="number" if name in numbers else None) for name in names])
    return element("table", caption, element("thead", head), element("tbody", rows), **attributes)


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return html.escape(plain(child), quote=False)
    return join(*child)


def plain(value: str | int | float) -> str:
    """Coordinates keep two decimals, which is finer than any screen; NUL has no place in HTML."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value).replace("\0", "\ufffd")
