"""The page at ``/``: drop a recording or speak, watch its segments appear, hear one, save subtitles."""

from __future__ import annotations

import json
from pathlib import Path

from hebrew_asr.pages.document import document
from hebrew_asr.pages.markup import Markup, element, join

_FOLDER = Path(__file__).parent
_POLICY = "connect-src 'self'; media-src blob:; img-src data:; form-action 'none'; base-uri 'none'"


def page(model: str, upload_mib: int) -> str:
    """The whole page: it loads nothing, talks to its own server only, and plays the recording from memory.

    Args:
        model: its name, shown at the top.
        upload_mib: a larger file is refused before it is sent.
    """
    settings = json.dumps({"model": model, "upload_mib": upload_mib})
    body = join(Markup(_read("page.html")), element("div", id="settings", hidden="", data_values=settings))
    return document("תמלול", body, style=_read("page.css"), script=_read("page.js"), policy=_POLICY, language="he")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
