"""Praat's TextGrid, in its long and its short form.

Praat itself takes only free-standing numbers, quoted texts and ``<flags>`` from such a file and passes over all else
(manual, "TextGrid file formats"), so that one reader of those three serves both forms. Libraries hold to the layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hebrew_asr.text.timestamps import Segment

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d[\d.eE+-]*)(?!\S)|(?<!\S)(<exists>|<absent>)|(?<!\S)!.*')
_TEXT_TIERS = re.compile(
    r"text|transcript\w*|sentences?|utterances?|utt|ortho\w*|trans|phrases?|segments?|תמלול|טקסט", re.I
)
_FINER_TIERS = re.compile(r"(?:.* - )?(?:phones?|phonemes?|syllables?|segs?|mau|kan|phn|notes?|comments?)", re.I)
_SILENT = re.compile(r"|sil|sp|silence|pause|<(?:sil|sp|p|p:|silence|pause)>|#", re.I)
_UNKNOWN = re.compile(r"spn|nsn|xxx|<(?:spn|nsn|unk|unknown|noise|laugh(?:ter)?|music)>|\[[^\[\]]*\]", re.I)


@dataclass(frozen=True)
class _Tier:
    name: str
    segments: tuple[Segment, ...]


def parse_textgrid(text: str) -> list[Segment]:
    """The intervals of the tier that holds the transcript; silent ones are left out.

    Taken is the tier called text, transcript, sentences or the like, or the only one besides phones. An interval of
    noise or of what nobody understood (``spn``, ``<unk>``) is a segment with a fault.

    Raises:
        ValueError: it is no text TextGrid, or several tiers could be the transcript.
    """
    try:
        tiers = list(_tiers(iter(_TOKEN.finditer(text))))
    except (StopIteration, RuntimeError) as error:
        raise ValueError("it ends too early") from error
    written = [tier for tier in tiers if not _FINER_TIERS.fullmatch(tier.name)] or tiers
    named = [tier for tier in written if _TEXT_TIERS.fullmatch(tier.name.strip())]
    chosen = named if len(named) == 1 else [tier for tier in written if any(segment.text for segment in tier.segments)]
    if len(chosen) > 1:
        names = ", ".join(tier.name for tier in chosen)
        raise ValueError(f"several tiers could be the transcript ({names}): call one of them text")
    found = chosen[0].segments if chosen else ()
    return [segment for segment in found if segment.text]


def _tiers(tokens: Iterator[re.Match[str]]) -> Iterator[_Tier]:
    if _text(tokens) not in ("ooTextFile", "ooTextFile short") or _text(tokens) != "TextGrid":
        raise ValueError("it does not start as a text TextGrid of Praat does")
    _number(tokens), _number(tokens)
    if next(tokens)[3] != "<exists>":
        return
    for _ in range(int(_number(tokens))):
        kind, name = _text(tokens), _text(tokens)
        _number(tokens), _number(tokens)
        size = int(_number(tokens))
        if kind == "IntervalTier":
            yield _Tier(name, tuple(_interval(tokens) for _ in range(size)))
        else:  # points have no length
            for _ in range(size):
                _number(tokens), _text(tokens)


def _interval(tokens: Iterator[re.Match[str]]) -> Segment:
    start_s, end_s = _number(tokens), _number(tokens)
    words = " ".join(_text(tokens).split())
    if _SILENT.fullmatch(words):
        return Segment(start_s, end_s, "")
    return Segment(start_s, end_s, words, "not speech" if _UNKNOWN.fullmatch(words) else "")


def _text(tokens: Iterator[re.Match[str]]) -> str:
    token = _next(tokens)
    if token[1] is None:
        raise ValueError(f"{token[0]!r} stands where a text should")
    return token[1].replace('""', '"')


def _number(tokens: Iterator[re.Match[str]]) -> float:
    token = _next(tokens)
    if token[2] is None:
        raise ValueError(f"{token[0]!r} stands where a number should")
    if not math.isfinite(number := float(token[2])):
        raise ValueError(f"{token[0]} is too large")
    return number


def _next(tokens: Iterator[re.Match[str]]) -> re.Match[str]:
    """The next token that is no comment."""
    token = next(tokens)
    while token[0].startswith("!"):
        token = next(tokens)
    return token
