"""Transcripts as the files that people know from Whisper's tools."""

from __future__ import annotations

import json
from typing import Any, Literal

from hebrew_asr.inference.long_form import Segment, Transcript
from hebrew_asr.inference.subtitles import cues
from hebrew_asr.languages import language_code

Format = Literal["txt", "srt", "vtt", "tsv", "json"]


def formatted(transcript: Transcript, form: Format, file: str) -> str:
    """The whole content of a file, ending with a newline where it is not empty.

    Args:
        transcript: what to write.
        form: ``txt`` has a line a segment; ``tsv`` start and end in ms and text, with a header; ``json`` is one object
            of :func:`as_values`; ``srt`` and ``vtt`` hold cues.
        file: name of the recording, for ``json``.
    """
    if form == "txt":
        return "".join(f"{segment.text}\n" for segment in transcript.segments)
    if form == "srt":
        return "\n".join(
            f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n"
            + "".join(f"{line.replace('-->', '→')}\n" for line in cue.lines)
            for number, cue in enumerate(cues(transcript.segments, transcript.duration_s), 1)
        )
    if form == "vtt":
        return "WEBVTT\n" + "".join(
            f"\n{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n"
            + "".join(f"{_escaped(line)}\n" for line in cue.lines)
            for cue in cues(transcript.segments, transcript.duration_s)
        )
    if form == "tsv":
        rows = (
            f"{s.start_s * 1000:.0f}\t{s.end_s * 1000:.0f}\t{' '.join(s.text.split())}\n" for s in transcript.segments
        )
        return "start\tend\ttext\n" + "".join(rows)
    return json.dumps(as_values(transcript, file), ensure_ascii=False, indent=2) + "\n"


def as_values(transcript: Transcript, file: str) -> dict[str, Any]:
    """Plain values with Whisper's names; times are in s. ``suspect`` stands only where the model lost its way."""
    return {
        "file": file,
        "text": transcript.text,
        "language": language_code(transcript.language) or None,
        "duration_s": round(transcript.duration_s, 3),
        "segments": [segment_values(number, segment) for number, segment in enumerate(transcript.segments)],
    }


def segment_values(number: int, segment: Segment) -> dict[str, Any]:
    """A segment of :func:`as_values`."""
    values = {"id": number, "start": segment.start_s, "end": segment.end_s, "text": segment.text}
    return values | ({"suspect": segment.suspect} if segment.suspect else {})


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
