"""Times of what is said as recognizers and annotation tools write them: Whisper's JSON and tsv, Audacity, ELAN."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

from hebrew_asr.files import from_json
from hebrew_asr.text.timestamps import Segment

_LABEL = re.compile(r"(\d+(?:[.,]\d+)?)\t(\d+(?:[.,]\d+)?)(?:\t(.*))?")
_LISTS = ("segments", "chunks", "transcription")
_FREQUENCIES = "\\\t"
"""Begins the line of a label that has frequencies too."""


def text_alone(text: str) -> str | None:
    """What a recognizer's JSON says without any times, as OpenAI's ``json``; None where it has times, or is another.

    Raises:
        ValueError: it is not JSON.
    """
    found = from_json(text)
    has_times = not isinstance(found, dict) or any(found.get(name) for name in _LISTS)
    return None if has_times or not isinstance(found.get("text"), str) else found["text"]


def parse_json(text: str) -> list[Segment]:
    """Segments as Whisper and what is built on it write them: ``segments``, ``chunks``, or the list alone.

    whisper.cpp calls it ``transcription``, with ``offsets`` in ms.

    Raises:
        ValueError: it is not JSON, or holds no such list, or a segment without times.
    """
    found = from_json(text)
    if isinstance(found, dict):
        found = next((found[name] for name in _LISTS if name in found), None)
    if not isinstance(found, list):
        raise ValueError("no list of segments, as Whisper writes it")
    return [_of_json(value, number) for number, value in enumerate(found, 1)]


def _of_json(value: Any, number: int) -> Segment:
    try:
        if "offsets" in value:
            start_s, end_s = (value["offsets"][edge] / 1000 for edge in ("from", "to"))
        else:
            start_s, end_s = value["timestamp"] if "timestamp" in value else (value["start"], value["end"])
        segment = Segment(float(start_s), float(end_s), " ".join(value["text"].split()))
        if not (math.isfinite(segment.start_s) and math.isfinite(segment.end_s)):
            raise ValueError
        return segment
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"segment {number} is not one with start, end and text: {str(value)[:80]}") from error


def parse_table(text: str) -> list[Segment]:
    """Whisper's tsv: a line ``start end text``, then times in ms.

    Raises:
        ValueError: it is another table.
    """
    header, *lines = [line for line in text.split("\n") if line.strip()] or [""]
    if header.split("\t") != ["start", "end", "text"]:
        raise ValueError("its first line is not start, end and text, as Whisper writes it")
    return [Segment(start / 1000, end / 1000, words) for start, end, words in map(_label, lines)]


def parse_labels(text: str) -> list[Segment]:
    """Labels that Audacity exports, start and end in s and a text with tabs between; none where it is another text."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith(_FREQUENCIES)]
    if not all(_LABEL.fullmatch(line) for line in lines):
        return []
    return [Segment(*label) for label in map(_label, lines) if label[2]]


def _label(line: str) -> tuple[float, float, str]:
    found = _LABEL.fullmatch(line)
    if found is None:
        raise ValueError(f"a line is not start, end and text: {line[:80]!r}")
    start, end = (float(found[number].replace(",", ".")) for number in (1, 2))
    return start, end, " ".join((found[3] or "").split())


def parse_elan(text: str) -> list[Segment]:
    """Annotations of ELAN's tiers that are not about another tier; one tier a speaker is usual (EAF schema 3.0).

    Raises:
        ValueError: it is not such a file, or an annotation has no times.
    """
    try:
        document = ElementTree.fromstring(text)  # whatever encoding it names: it is decoded
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML: {error}") from error
    shifts = [media.get("TIME_ORIGIN") for media in document.iter("MEDIA_DESCRIPTOR")]
    if shifted := [shift for shift in shifts if shift not in (None, "", "0")]:
        raise ValueError(f"its media are shifted (TIME_ORIGIN {shifted[0]} ms): synchronize them at 0 in ELAN")
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in document.iter("TIME_SLOT")}
    segments = []
    for tier in document.iter("TIER"):
        for said in tier.iter("ALIGNABLE_ANNOTATION") if tier.get("PARENT_REF") is None else ():
            words = " ".join((said.findtext("ANNOTATION_VALUE") or "").split())
            times = [slots.get(said.get(name)) for name in ("TIME_SLOT_REF1", "TIME_SLOT_REF2")]
            if words and not all(time and time.isdecimal() for time in times):
                raise ValueError(f"the annotation {words[:40]!r} has no times")
            if words:
                start_s, end_s = (int(time or 0) / 1000 for time in times)
                segments.append(Segment(start_s, end_s, words))
    if not segments:
        raise ValueError("it has no annotations with times")
    return segments
