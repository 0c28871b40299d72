"""The frame of every HTML page: one file that needs no other file and no network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hebrew_asr.pages.markup import Markup, plain

_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def asset(name: str) -> str:
    """A style sheet or script of this folder: ``page.css``, ``cursor.js``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def document(title: str, body: Markup, *, style: str = "", script: str = "", policy: str = "") -> str:
    """The whole page.

    Whatever a text in it may hold, the page can load nothing and send nothing but what ``policy`` allows.

    Args:
        title: of the window.
        body: content of ``main``.
        style: added to ``page.css``.
        script: JavaScript without a closing tag in it; none by default.
        policy: added to the page's Content-Security-Policy, such as ``media-src 'self'``.
    """
    allowed = ["default-src 'none'", "style-src 'unsafe-inline'", *(["script-src 'unsafe-inline'"] if script else [])]
    return _ENVIRONMENT.get_template("page.html.jinja").render(
        title=plain(title),
        body=body,
        style=asset("page.css") + style,
        script=script,
        policy="; ".join([*allowed, *([policy] if policy else [])]),
    )
