"""Segments as subtitles that people can read, and that display right from right to left.

At most two lines of 42 characters, 17 characters a second where the pause after a cue allows it, from 5/6 s to 7 s: the
usual limits of subtitling (Netflix' Timed Text Style Guide for Hebrew). A word of more than 42 letters is parted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hebrew_asr.inference.long_form import Segment

LINE_CHARACTERS, LINES = 42, 2
CHARACTERS_PER_S = 17.0
LEAST_S, MOST_S = 5 / 6, 7.0
_BETWEEN_S = 0.083
_MERGE_PAUSE_S = 0.3
_RLI, _FSI, _PDI = "\u2067", "\u2068", "\u2069"
_FOREIGN = re.compile(
    r"{sign}*{letter}{sign}*(?: +{sign}*[^\W_\u0590-\u05ff]{sign}*)*".format(
        sign=r"[^\s\u0590-\u05ff]", letter=r"[^\W\d_\u0590-\u05ff]"
    )
)
"""Words without a Hebrew letter, from the first that has a letter to the last that has a letter or a digit."""
_OPENING, _CLOSING = "(['\"", ".,;:?!…\"')]"
"""Signs of the Hebrew sentence that a foreign word is written together with."""
_ABBREVIATION = re.compile(r"\b[^\W\d_]\.[^\W\d_]$")
_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Cue:
    """Text that is shown at once."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


def cues(segments: Sequence[Segment], duration_s: float = math.inf) -> list[Cue]:
    """Segments as cues in order, none overlapping the next, and none shown after the recording's end, ``duration_s``.

    Where a segment is too long for one cue its time is shared out by characters: nothing else is known about its words.
    """
    parts = [part for segment in segments for part in _parts(segment)]
    shown = _merged(parts)
    timed = [
        _timed(part, shown[i + 1].start_s if i + 1 < len(shown) else None, duration_s) for i, part in enumerate(shown)
    ]
    return [Cue(part.start_s, part.end_s, tuple(_isolated(line) for line in _lines(part.text))) for part in timed]


def _parts(segment: Segment) -> list[Segment]:
    """A segment in parts that each fit two lines, and 7 s if it has a word for each."""
    text = " ".join(_CONTROLS.sub("", segment.text).split())
    if not text:
        return []
    lasts_s = max(segment.end_s - segment.start_s, 0.0)
    least = max(-(-int(lasts_s * 1000) // int(MOST_S * 1000)), 1)
    most = max(-(-len(text) // least), 1)
    texts = _filled(_words(text), most)
    per_character_s = lasts_s / sum(map(len, texts))
    found, start_s = [], segment.start_s
    for part in texts:
        end_s = start_s + len(part) * per_character_s
        found.append(replace(segment, start_s=start_s, end_s=end_s, text=part))
        start_s = end_s
    return found


def _words(text: str) -> list[str]:
    return [
        word[at : at + LINE_CHARACTERS] for word in text.split() for at in range(0, len(word), LINE_CHARACTERS) if word
    ]


def _filled(words: Sequence[str], most: int) -> list[str]:
    """Words in texts that fit two lines, of about ``most`` characters at most, which end at punctuation if they can."""
    texts: list[list[str]] = []
    for word in words:
        now = texts[-1] if texts else None
        ends = bool(now) and now[-1][-1] in ".?!…" and len(" ".join(now)) >= most / 2
        if now is None or ends or len(" ".join(now)) >= most or not _fits(" ".join([*now, word])):
            texts.append([word])
        else:
            now.append(word)
    return [" ".join(part) for part in texts]


def _fits(text: str) -> bool:
    return len(_lines(text)) <= LINES


def _lines(text: str) -> list[str]:
    """Text in lines, two of about the same length if one is not enough; a break after punctuation is preferred."""
    if len(text) <= LINE_CHARACTERS:
        return [text]
    spaces = [i for i, character in enumerate(text) if character == " "]
    breaks = [i for i in spaces if i <= LINE_CHARACTERS and len(text) - i - 1 <= LINE_CHARACTERS]
    if breaks:
        best = min(breaks, key=lambda i: abs(len(text) - 2 * i) - (12 if text[i - 1] in ",.;:?!" else 0))
        return [text[:best], text[best + 1 :]]
    last = max((i for i in spaces if i <= LINE_CHARACTERS), default=len(text))
    return [text[:last], *(_lines(text[last + 1 :]) if last < len(text) else [])]


def _merged(parts: Sequence[Segment]) -> list[Segment]:
    """Cues too short to be read, joined with the one before if there is no pause between and both fit."""
    found: list[Segment] = []
    for part in parts:
        before = found[-1] if found else None
        if (
            before
            and (_lasts_s(before) < _needs_s(before) or _lasts_s(part) < _needs_s(part))
            and part.start_s - before.end_s <= _MERGE_PAUSE_S
            and part.end_s - before.start_s <= MOST_S
            and _fits(f"{before.text} {part.text}")
        ):
            found[-1] = replace(before, end_s=part.end_s, text=f"{before.text} {part.text}")
        else:
            found.append(part)
    return found


def _lasts_s(part: Segment) -> float:
    return part.end_s - part.start_s


def _needs_s(part: Segment) -> float:
    return min(max(len(part.text) / CHARACTERS_PER_S, LEAST_S), MOST_S)


def _timed(part: Segment, next_s: float | None, duration_s: float) -> Segment:
    """Shown for as long as it is said, 7 s at most, or reading takes, unless the next cue or the end comes before."""
    end_s = max(min(part.end_s, part.start_s + MOST_S), min(part.start_s + _needs_s(part), duration_s))
    if next_s is not None:
        end_s = min(end_s, max(next_s - _BETWEEN_S, part.end_s), max(next_s, part.start_s + 0.001))
    return replace(part, end_s=end_s)


def _isolated(line: str) -> str:
    """A line with the marks that keep it in order on screens that begin from the left.

    Hebrew letters and spaces alone cannot jump and get none. Otherwise the line is a right-to-left isolate, and in it
    each run of foreign words whose outer signs would jump (C++, .NET, e.g.) is an isolate of its own.
    """
    kinds = {unicodedata.bidirectional(character) for character in line}
    if not kinds & {"R", "AL"} or kinds <= {"R", "NSM", "WS"}:
        return line
    return f"{_RLI}{_FOREIGN.sub(_kept_together, line)}{_PDI}"


def _kept_together(found: re.Match[str]) -> str:
    """A run of foreign words, in an isolate if it needs one; what belongs to the Hebrew around it stays outside."""
    run = found[0]
    core = run.rstrip(_CLOSING)
    if _ABBREVIATION.search(core) and run[len(core) :].startswith("."):
        core += "."
    after = run[len(core) :]
    joined_to_hebrew = found.start() > 0 and not found.string[found.start() - 1].isspace()
    core = core.lstrip(_OPENING + "-" * joined_to_hebrew)
    before = run[: len(run) - len(core) - len(after)]
    if all(unicodedata.bidirectional(character) in ("L", "EN") for character in (core[0], core[-1])):
        return run
    return f"{before}{_FSI}{core}{_PDI}{after}"
