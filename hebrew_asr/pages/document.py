"""The frame of every HTML page: one file that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hebrew_asr.pages.markup import Markup, plain

_ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def asset(name: str) -> str:
    """A style sheet or script of this folder: ``page.css``, ``cursor.js``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def address(file: str, folder: str | Path) -> str:
    """Of a file, from a page in ``folder``. It keeps its name where that is a link: browsers tell sound by its suffix.

    A name that is not UTF-8 has an address too, of its bytes.
    """
    inside, name = os.path.split(file)
    place, home = (_without_links(Path(path).absolute()) for path in (inside, folder))
    return quote(os.fsencode(os.path.relpath(f"{place}/{name}", home)))


@lru_cache  # reports have the same folders for a hundred thousand clips
def _without_links(folder: Path) -> str:
    return os.path.realpath(folder)


def document(
    title: str,
    body: Markup,
    *,
    style: str = "",
    script: str = "",
    policy: str = "",
    language: Literal["en", "he"] = "en",
) -> str:
    """The whole page.

    Whatever a text in it may hold, the page can run no script but its own, and load and send nothing but what
    ``policy`` allows.

    Args:
        title: of the window.
        body: content of ``main``.
        style: added to ``page.css``.
        script: JavaScript without a closing tag in it; none by default.
        policy: added to the page's Content-Security-Policy, such as ``media-src 'self'``.
        language: of the page itself, which decides its direction.
    """
    script = f"\n{script}" if script else ""
    allowed = ["default-src 'none'", "style-src 'unsafe-inline'"]
    if script:
        allowed.append(f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")
    return _ENVIRONMENT.get_template("page.html.jinja").render(
        title=plain(title),
        body=body,
        style=asset("page.css") + style,
        script=script,
        language=language,
        direction="rtl" if language == "he" else "ltr",
        policy="; ".join([*allowed, *([policy] if policy else [])]),
    )
