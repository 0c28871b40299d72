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
from hebrew_asr.remote.paths import RemotePath
from hebrew_asr.sources.rows import Row
from hebrew_asr.text.timestamps import has_timestamps
from hebrew_asr.text.values import is_true, number, read_out

FLAGS = ("skipped", "unintelligible", "foreign_language", "multiple_speakers", "noisy", "too_long")
"""Check-boxes of the crowd-transcribe application, all inside its "I could not transcribe this" dialog."""

TEXT_COLUMNS = ("sentence", "text", "transcript", "transcription")
SPEAKER_COLUMNS = ("client_id", "speaker_id", "speaker")
SESSION_COLUMNS = ("session", "group")


@dataclass(frozen=True)
class Place:
    """Where a row stands: its fallback identity, and the folder that relative audio paths start at."""

    id: str
    folder: Path | RemotePath


@dataclass(frozen=True)
class Adapter:
    """How one family of corpora is read."""

    name: str
    required: frozenset[str]
    optional: tuple[str, ...]
    convert: Callable[[dict[str, Any], Place], Row]

    def columns_in(self, available: Iterable[str]) -> list[str]:
        """The columns worth reading from a file that has ``available``."""
        found = list(available)
        known = self.required.union(self.optional)
        whole = {*_STRUCTS}.difference(name.partition(".")[0] for name in found if name in known and "." in name)
        return [column for column in found if column in known or column in whole]


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
        if value.get("array") is not None:
            raise DataError(
                f"row {place.id}: its audio is decoded samples, not the bytes of a file: write the table with "
                "`datasets.Audio(decode=False)`"
            )
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not value:
        return b""
    if not isinstance(value, str):
        raise DataError(f"row {place.id}: its audio is {type(value).__name__}, not the bytes of a file or its path")
    if isinstance(place.folder, RemotePath):
        raise DataError(f"row {place.id}: its audio lies beside the table: copy both to this machine")
    return str(place.folder / value)


def _uuid_row(row: dict[str, Any], place: Place) -> Row:
    extra, problem = _extra(row, place)
    attributes, wrong = _struct(extra, "attributes", place)
    uuid = str(row["uuid"] or "")
    return Row(
        id=uuid or place.id,
        text=_text(row),
        audio=_audio(row, place),
        groups=uuid_groups(uuid) if uuid else (),
        flags=_flags(row, extra),
        stated_duration_s=number(extra.get("duration")),
        retake=is_true(row.get("is_retranscribe")) or is_true(attributes.get("retranscribe")),
        problem=problem or wrong,
    )


def _slice_row(row: dict[str, Any], place: Place) -> Row:
    metadata, problem = _struct(row, "metadata", place)
    extra, wrong = _struct(row, "extra_data", place)
    entry = metadata.get("entry_id")
    text = str(row["transcript"]) if row.get("transcript") else _text(row)
    return Row(
        id=place.id,
        text=text,
        audio=_audio(row, place),
        groups=(f"session:{entry}",) if entry else (),
        flags=_flags(row, metadata | extra),
        timed=has_timestamps(text),  # metadata.duration is the nominal slice length, not that of the audio
        problem=problem or wrong,
    )


def _plain_row(row: dict[str, Any], place: Place) -> Row:
    samples = number(row["num_samples"]) if isinstance(row.get("num_samples"), int) else None  # FLEURS: at 16 kHz
    groups = [f"speaker:{row[column]}" for column in SPEAKER_COLUMNS if row.get(column) not in (None, "")]
    groups += [f"session:{row[column]}" for column in SESSION_COLUMNS if row.get(column) not in (None, "")]
    text = _text(row)
    extra, problem = _extra(row, place)
    return Row(
        id=place.id,
        text=text,
        audio=_audio(row, place),
        groups=tuple(groups),
        flags=_flags(row, extra),
        stated_duration_s=number(row.get("duration_s")) if samples is None else samples / 16_000,
        timed=has_timestamps(text),
        problem=problem,
    )


def _extra(row: dict[str, Any], place: Place) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The fields of ``extra_data`` and ``metadata``, and what is wrong with them; the latter may be some words."""
    extra, problem = _struct(row, "extra_data", place)
    metadata, wrong = _struct(row, "metadata", place)
    is_broken = wrong is not None and str(row["metadata"]).lstrip()[:1] in ("{", "[")
    return metadata | extra, problem or (wrong if is_broken else None)


def _struct(row: dict[str, Any], column: str, place: Place) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A column of fields, as a struct or written out as JSON or as Python does; and what is wrong with it."""
    value = read_out(row.get(column))
    if isinstance(value, list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value):
        value = {str(name): field for name, field in value}  # a map, as pyarrow gives it
    if value is None or value != value:  # pandas writes NaN where there is nothing
        return {}, None
    if isinstance(value, dict):
        return value, None
    return {}, (
        "unreadable metadata",
        f"row {place.id}: {column} is {str(value)[:80]!r}, which is neither fields nor JSON",
    )


def _flags(row: dict[str, Any], extra: dict[str, Any]) -> tuple[str, ...]:
    return tuple(flag for flag in FLAGS if is_true(extra.get(flag)) or is_true(row.get(flag)))


def _text(row: dict[str, Any]) -> str:
    """The first text that is not empty: a table may have several such columns, and fill one of them."""
    texts = (str(row[column]) for column in TEXT_COLUMNS if row.get(column) is not None)
    return next((text for text in texts if text.strip()), "")


def _plain(name: str, *required: str, optional: tuple[str, ...] = ()) -> Adapter:
    more = (*SPEAKER_COLUMNS, *SESSION_COLUMNS, *TEXT_COLUMNS, *FLAGS, *_EXTRA, *optional)
    return Adapter(name, frozenset(("audio", *required)), more, _plain_row)


_STRUCTS = ("extra_data", "metadata")
"""Read whole where they are texts or maps, and by their fields where they are structs that have any of those."""
_EXTRA_DATA = (
    "extra_data.duration",
    "extra_data.attributes.retranscribe",
    *(f"extra_data.{flag}" for flag in FLAGS),
)
_EXTRA = (*_EXTRA_DATA, *(f"metadata.{flag}" for flag in FLAGS))
_UUID_OPTIONAL = ("is_retranscribe", *TEXT_COLUMNS, *FLAGS, *_EXTRA)
_SLICE_OPTIONAL = ("metadata", *TEXT_COLUMNS, *FLAGS, *_EXTRA_DATA)
ADAPTERS = (
    Adapter("crowd-transcribe", frozenset(("audio", "uuid", "sentence")), _UUID_OPTIONAL, _uuid_row),
    Adapter("uuid and text", frozenset(("audio", "uuid", "text")), _UUID_OPTIONAL, _uuid_row),
    Adapter("whisper slices", frozenset(("audio", "transcript")), _SLICE_OPTIONAL, _slice_row),
    _plain("Common Voice, hebrew_speech_kan", "sentence"),
    _plain("FLEURS", "transcription", optional=("num_samples",)),
    _plain("SASPEECH", "text", optional=("duration_s",)),
)
"""In order of preference: the most particular schema first."""
