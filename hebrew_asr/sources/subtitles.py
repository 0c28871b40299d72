"""Subtitles, SRT, WebVTT and YouTube's SBV, as the times of a long recording's words.

All are blocks with a line of two times, so one reader serves them, and what is none: times without hours, a full
stop in an SRT, a comma in a WebVTT. Libraries read one of them each, strictly, and leave markup in the text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from hebrew_asr.text.timestamps import Segment

_TIME = r"(?:(\d+):)?(\d{1,3}):(\d{1,2})(?:(?:[.,]|:(?=\d{3}))(\d{1,3}))?"  # fewer digits after a colon count frames
_TIMES = re.compile(rf"^{_TIME}(?:\s*-+>\s*|(?<=\.\d{{3}}),(?=[\d:]+\.\d{{3}}$)){_TIME}(?:\s.*)?$")  # SBV: a comma
_TIMELIKE = re.compile(r"-->|^[^\w<]*\d+:\d+(?::\d+\b|[.,]\d+\W)")
_NOTES = re.compile(r"(?:\A|(?<=\n\n))(?:NOTE|STYLE|REGION)(?:[ \t].*)?(?:\n.+)*")
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")
_MARKS = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Direction marks and joiners: invisible, and some editors put them into the times too."""
_WITHIN = re.compile(r"<\d+:[\d:.]+>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|</>|\{\\[^{}]*\}")
_TURN = re.compile(r"^\s*[-–—]\s+", re.M)
_NO_SPEECH = re.compile(r"\[[^\[\]]*\]|\([^()]*\)|[♪♫#][^♪♫#]*[♪♫#]|[♪♫\s]")


def parse_subtitles(text: str) -> list[Segment]:
    """The cues of an SRT, WebVTT or SBV file in the order of the file, without markup; empty ones are left out.

    A cue that is all sound description, ``[מוזיקה]`` or ``♪``, is a segment with a fault: it is heard but not said.

    Raises:
        ValueError: there is no line of times, or one of them is not a time of day.
    """
    bare = _NOTES.sub(lambda note: "\n" * note[0].count("\n"), _MARKS.sub("", text))
    rolling = _WITHIN.search(text) is not None
    cues, said_before = [], ""
    for start_s, end_s, lines in _blocks(bare.split("\n")):
        if rolling and lines and _plain(lines[0]) == said_before:  # YouTube shows a line twice: as it comes, and again
            lines = lines[1:]
        words = _plain("\n".join(lines))
        said_before = _plain(lines[-1]) if lines else said_before
        if words:
            cues.append(Segment(start_s, end_s, words, "" if _NO_SPEECH.sub("", words) else "not speech"))
    return cues


def _blocks(lines: list[str]) -> Iterator[tuple[float, float, list[str]]]:
    """Times and text lines of each cue, which lasts until the next line of times."""
    for number, line in enumerate(lines, 1):
        if _TIMELIKE.search(line) and not _TIMES.match(line.strip()):
            raise ValueError(f"line {number} is not two times: {line.strip()[:60]!r}")
    places = [(number, match) for number, line in enumerate(lines) if (match := _TIMES.match(line.strip()))]
    if not places:
        raise ValueError("no line with two times, as 00:00:01,000 --> 00:00:02,500")
    for (number, match), following in zip(places, [*(place for place, _ in places[1:]), len(lines)], strict=True):
        paragraphs = [part.split("\n") for part in _BLANK.split("\n".join(["", *lines[number + 1 : following]]))]
        is_named = len(paragraphs) > 1 and len(paragraphs[-1]) == 1
        if following < len(lines) and (is_named or paragraphs[-1][-1].strip().isdigit()):
            paragraphs[-1].pop()  # the next cue's number, or its name
        body = [line for part in paragraphs for line in part if line.strip()]
        yield _seconds(match.groups()[:4], number), _seconds(match.groups()[4:], number), body


def _seconds(parts: tuple[str | None, ...], line: int) -> float:
    hours, minutes, seconds, fraction = parts
    if int(seconds or 0) > 59:
        raise ValueError(f"line {line + 1}: {seconds} seconds")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction or 0}")


def _plain(text: str) -> str:
    """Without tags, entities and the dashes that mark a change of speaker; on one line."""
    bare = _TAG.sub("", _WITHIN.sub("", text))
    return " ".join(_TURN.sub("", _MARKS.sub("", html.unescape(bare))).split())
