"""Whether a file of text holds words alone: whoever trains on the others learns to write times and markup."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable

_MARKUP = re.compile(r"\s*(?:\{\\(rtf)|<(?:!doctype\s+)?(html|\?xml)\b)", re.I)
_TIME = re.compile(r"\W*\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d+)?\b")
_TWO_NUMBERS = re.compile(r"\s*(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)[\t ]+(-?\d+(?:[.,]\d+)?(?:e[+-]?\d+)?)(?:\s|$)", re.I)
_SPEAKER = re.compile(
    r"^[^\w\n]*"
    r"(?:(?:דובר|דוברת|משתתף|משתתפת|מראיין|מראיינת|מרואיין|מרואיינת|speaker|spk)(?:[ _-]*(?:\d+|[A-Zא-ת]))?['׳]?"
    r"\)?|\[[^][\n]*\])\s*:[^\S\n]*",
    re.I | re.M,
)
"""Who speaks, as recognizers and transcribers write it before what is said."""

_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z]\w{1,30});", re.I)
_BARE_NAME = re.compile(r"[^\w\n]*([^\W\d_]\S{0,30}?(?: [^\W\d_]\S{0,30}?){0,2}) ?:\s")


def words_alone(text: str) -> str:
    """A text without what only says who speaks, where that stands first in a line: ``דובר 1:``, ``[יוסי]:``; and with
    the signs that pages and their databases write as ``&quot;``.

    A bare name stays: words before a colon may have been said.
    """
    return _SPEAKER.sub("", _ENTITY.sub(lambda sign: html.unescape(sign[0]), text))


def bare_names(lines: Iterable[str]) -> Counter[str]:
    """How many lines begin with each of the words that stand before a colon in several of them: names, likely."""
    found = Counter(name[1] for line in lines if (name := _BARE_NAME.match(line)))
    return Counter({name: count for name, count in found.items() if count > 1})


def not_plain(text: str) -> str:
    """What a text holds beside words, and what to do about it; nothing where it is words alone.

    Lines that begin with a time or two rising numbers count from two of them on, where a third of all lines do so:
    people say times, too.
    """
    if markup := _MARKUP.match(text):
        return f"it is {(markup[1] or markup[2]).strip('?').upper()}, not plain text: save it as plain text"
    if "-->" in text:
        return "it holds times, as subtitles do: if it is one, call it .srt or .vtt"
    lines = [line for line in text.split("\n") if line.strip()]
    clocks = [line for line in lines if _TIME.match(line)]
    pairs = [line for line in lines if (two := _TWO_NUMBERS.match(line)) and _number(two[1]) < _number(two[2])]
    for found in clocks, pairs:
        if len(found) > 1 and 3 * len(found) >= len(lines):
            said = f"{len(found)} of its {len(lines)} lines begin with times, as {found[0].strip()[:40]!r}"
            return f"{said}: leave the words alone, or make it an .srt"
    return ""


def _number(written: str) -> float:
    return float(written.replace(",", "."))
