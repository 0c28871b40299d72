"""Adapters from the columns of public Hebrew corpora to ``Row``; the columns themselves choose the adapter.

Schemas: dataset cards of ivrit-ai/crowd-transcribe-v5 and ivrit-ai/whisper-training; ``create_dataset.py`` of
ivrit-ai/asr-training for the *-whisper-training family; cards of Common Voice, FLEURS, SASPEECH and hebrew_speech_kan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.errors import DataError
from hebrew_asr.sources.rows import Row
from hebrew_asr.sources.timestamps import has_timestamps

FLAGS = ("skipped", "unintelligible", "foreign_language", "multiple_speakers", "noisy", "too_long")
"""Check-boxes of the crowd-transcribe application, all inside its "I could not transcribe this" dialog."""

TEXT_COLUMNS = ("sentence", "text", "transcript", "transcription")
SPEAKER_COLUMNS = ("client_id", "speaker_id", "speaker")
SESSION_COLUMNS = ("session", "group")


@dataclass(frozen=True)
class Place:
    """Where a row stands: its fallback identity, and the folder that relative audio paths start at."""

    id: str
    folder: Path


@dataclass(frozen=True)
class Adapter:
    """How one family of corpora is read."""

    name: str
    required: frozenset[str]
    optional: tuple[str, ...]
    convert: Callable[[dict[str, Any], Place], Row]

    def columns_in(self, available: Iterable[str]) -> list[str]:
        """The columns worth reading from a file that has ``available``."""
        return [column for column in available if column in self.required or column in self.optional]


def choose_adapter(columns: Iterable[str], *, where: str) -> Adapter:
    """The first adapter whose columns are all there. Raises DataError naming what was found."""
    found = set(columns)
    for adapter in ADAPTERS:
        if adapter.required <= found:
            return adapter
    raise DataError(
        f"{where}: no known set of columns among {sorted(found)}. An `audio` column and one of "
        f"{', '.join(TEXT_COLUMNS)} are needed"
    )


def uuid_groups(uuid: str) -> tuple[str, ...]:
    """Groups of a crowd-transcribe recording, whose uuid reads ``source/episode/segment``."""
    parts = uuid.split("/")
    groups = [f"uuid:{uuid}"]
    if len(parts) >= 2:
        groups.append(f"source:{parts[0]}")
    if len(parts) >= 3:
        groups.append(f"episode:{'/'.join(parts[:-1])}")
    return tuple(groups)


def _audio(row: dict[str, Any], place: Place) -> bytes | str:
    value = row["audio"]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not value:
        return b""
    if not isinstance(value, str):
        raise DataError(f"row {place.id}: its audio is {type(value).__name__}, not the bytes of a file or its path")
    return str(place.folder / value)


def _uuid_row(row: dict[str, Any], place: Place) -> Row:
    extra = row.get("extra_data") or {}
    uuid = str(row["uuid"] or "")
    attributes = extra.get("attributes") or {}
    return Row(
        id=uuid or place.id,
        text=_text(row),
        audio=_audio(row, place),
        groups=uuid_groups(uuid) if uuid else (),
        flags=tuple(flag for flag in FLAGS if extra.get(flag)),
        stated_duration_s=extra.get("duration"),
        retake=bool(row.get("is_retranscribe") or attributes.get("retranscribe")),
    )


def _slice_row(row: dict[str, Any], place: Place) -> Row:
    metadata = row.get("metadata") or {}
    entry = metadata.get("entry_id")
    text = str(row["transcript"] or "")
    return Row(
        id=place.id,
        text=text,
        audio=_audio(row, place),
        groups=(f"session:{entry}",) if entry else (),
        timed=has_timestamps(text),  # metadata.duration is the nominal slice length, not that of the audio
    )


def _plain_row(row: dict[str, Any], place: Place) -> Row:
    samples = row.get("num_samples")  # FLEURS: at 16 kHz
    groups = [f"speaker:{row[column]}" for column in SPEAKER_COLUMNS if row.get(column) not in (None, "")]
    groups += [f"session:{row[column]}" for column in SESSION_COLUMNS if row.get(column) not in (None, "")]
    return Row(
        id=place.id,
        text=_text(row),
        audio=_audio(row, place),
        groups=tuple(groups),
        stated_duration_s=samples / 16_000 if isinstance(samples, int) else row.get("duration_s"),
    )


def _text(row: dict[str, Any]) -> str:
    for column in TEXT_COLUMNS:
        if row.get(column) is not None:
            return str(row[column])
    return ""


def _plain(name: str, *required: str, optional: tuple[str, ...] = ()) -> Adapter:
    more = (*SPEAKER_COLUMNS, *SESSION_COLUMNS, *optional)
    return Adapter(name, frozenset(("audio", *required)), more, _plain_row)


_EXTRA = (
    "extra_data.duration",
    "extra_data.attributes.retranscribe",
    *(f"extra_data.{flag}" for flag in FLAGS),
)
ADAPTERS = (
    Adapter("crowd-transcribe", frozenset(("audio", "uuid", "sentence")), ("is_retranscribe", *_EXTRA), _uuid_row),
    Adapter("uuid and text", frozenset(("audio", "uuid", "text")), (), _uuid_row),
    Adapter("whisper slices", frozenset(("audio", "transcript")), ("metadata",), _slice_row),
    _plain("Common Voice, hebrew_speech_kan", "sentence"),
    _plain("FLEURS", "transcription", optional=("num_samples",)),
    _plain("SASPEECH", "text", optional=("duration_s",)),
)
"""In order of preference: the most particular schema first."""
