"""Listings: the tables in which people name their recordings, each line as a dictionary of known names.

A line that is wrong is a row with its problem; a file whose lines cannot be told apart is an error. So as many rows
come out as the file has lines, or none.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json
from hebrew_asr.text.reading import read_text
from hebrew_asr.text.values import unquoted

LISTING_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".psv")
_DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",), ".psv": ("|",)}
NAMES = {
    "audio": (
        *("audio", "path", "file", "file_name", "filename", "audio_filepath", "audio_file", "audio_path", "wav"),
        *("wav_path", "wav_file", "wav_filename", "file_path", "filepath", "recording", "clip", "קובץ", "נתיב"),
        *("שם_קובץ", "שם_הקובץ", "הקלטה", "קובץ_אודיו", "קובץ_שמע", "אודיו"),
    ),
    "sentence": ("sentence", "משפט"),
    "text": ("text", "normalized_text", "wrd", "טקסט", "מלל"),
    "transcript": ("transcript", "תמלול", "תמליל"),
    "transcription": ("transcription", "transcripts"),
    "id": ("id", "utt_id", "utterance_id", "segment_id", "clip_id"),
    "duration_s": ("duration_s", "length_s"),
    "duration": ("duration", "משך"),
    "start_s": (
        *("start_s", "offset", "start", "start_time", "begin", "begin_time", "from", "start_sec", "onset"),
        *("התחלה", "זמן_התחלה"),
    ),
    "end_s": ("end_s", "end", "end_time", "stop", "to", "end_sec", "סיום", "סוף", "זמן_סיום", "זמן_סוף"),
    "speaker": ("speaker", "client_id", "speaker_id", "spk", "spk_id", "speaker_name", "דובר"),
    "session": ("session", "session_id", "group", "recording_id"),
    "source": ("source", "podcast", "show"),
    "episode": ("episode", "episode_id"),
}
"""What the columns are called that are read, first the name that the rest of the code knows them by."""
TEXTS = ("sentence", "text", "transcript", "transcription")
TIMES = re.compile(
    r"(?:\w+_)?(?:start|begin|onset|offset|end|stop|התחלה|סיום|סוף)(?:_?time(?:stamp|code)?)?"
    r"(?:_?(?:m?s|m?secs?|m?seconds|millis\w*|samples?|frames?))?"
)
"""Columns of times by their names."""
_CANONICAL = {name: own for own, names in NAMES.items() for name in names}


@dataclass(frozen=True)
class Line:
    """A line of a listing."""

    where: str
    """``line 7``."""
    values: dict[str, Any]
    """By the names of ``NAMES`` where they are known, else by their own."""
    problem: str = ""
    """What is wrong with it; its values are empty then."""
    columns: tuple[str, ...] = ()

    def called(self, name: str) -> str:
        """What this listing calls a column that ``NAMES`` knows by ``name``."""
        own = {_key(column): column for column in self.columns}
        return next((own[each] for each in NAMES[name] if each in own), name)


def read_listing(path: Path, is_audio: Callable[[str], bool]) -> list[Line]:
    """The lines of a listing but for its header and blank ones.

    Args:
        is_audio: whether a value names a recording; this tells a table without a header.

    Raises:
        DataError: it cannot be read, its columns are unknown, or its lines cannot be told apart.
    """
    text = read_text(path)
    if path.suffix.lower() in _DELIMITERS:
        return _table(path, text, is_audio)
    if text.lstrip().startswith("["):
        return _json_array(path, text)
    if path.suffix.lower() == ".json" and (rows := _rows_within(text)) is not None:
        return [_of_object(row, f"row {number}") for number, row in enumerate(rows, 1)]
    return [_json_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_array(path: Path, text: str) -> list[Line]:
    try:
        rows = from_json(text)
    except ValueError as error:
        raise DataError(f"listing {path} is not JSON: {error}") from error
    return [_of_object(row, f"row {number}") for number, row in enumerate(rows, 1)]


def _rows_within(text: str) -> list[Any] | None:
    """Rows of one JSON object: its only list of objects, objects by their ids (SpeechBrain), or texts by the names of
    recordings; None for others.
    """
    try:
        found = from_json(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if found and all(isinstance(value, dict) for value in found.values()):
        return [{"id": name, **value} for name, value in found.items()]
    if found and all(isinstance(value, str) and name.lower().endswith(AUDIO_SUFFIXES) for name, value in found.items()):
        return [{"audio": name, "text": value} for name, value in found.items()]
    return lists[0] if len(lists) == 1 and not any(_CANONICAL.get(_key(name)) == "audio" for name in found) else None


def _json_line(line: str, number: int) -> Line:
    try:
        return _of_object(from_json(line), f"line {number}")
    except ValueError as error:
        return Line(f"line {number}", {}, f"not JSON: {error}")


def _of_object(row: Any, where: str) -> Line:
    return _named(row, where) if isinstance(row, dict) else Line(where, {}, "not a JSON object")


def _table(path: Path, text: str, is_audio: Callable[[str], bool]) -> list[Line]:
    if text[:4].lower() == "sep=":  # a line by which Excel is told the delimiter
        text = text[text.find("\n") :]
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiters = _DELIMITERS[path.suffix.lower()]
    delimiter = next((d for d in delimiters if _is_header(_columns(first, d))), None)
    headed = delimiter is not None
    if delimiter is None:  # LJSpeech: "LJ001-0001|text as written|text as read", and no header
        delimiter = next((d for d in reversed(delimiters) if d in first and is_audio(first.split(d)[0].strip())), None)
    if delimiter is None:
        found = _columns(first, max(delimiters, key=first.count))
        raise DataError(unknown_columns(path, found))
    quoted = delimiter != "|" and (path.suffix.lower() == ".csv" or first.startswith('"'))
    rows = _quoted(path, text, delimiter, is_audio) if quoted else _unquoted(text, delimiter)
    columns = next(rows)[1] if headed else ["audio", "text"]
    keys = [_key(column) for column in columns]
    twice = {key for key in keys if key in _CANONICAL and keys.count(key) > 1}
    if twice:
        raise DataError(f"listing {path}: two columns are called {' and two '.join(sorted(twice))}; rename or drop one")
    return [_of_fields(columns, fields, f"line {number}", headed) for number, fields in rows]


def unknown_columns(path: Path, found: list[str]) -> str:
    """What to say of a listing in whose columns there is no audio or no text."""
    return (
        f"listing {path}: no known set of columns among {found}. One for the audio ({', '.join(NAMES['audio'])}) "
        f"and one for its text ({', '.join(TEXTS)}) are needed"
    )


def _of_fields(columns: list[str], fields: list[str], where: str, headed: bool) -> Line:
    if not headed and len(fields) >= 2:  # the last column is the text as it is read
        return Line(where, {"audio": fields[0].strip(), "text": fields[-1] or fields[1]})
    if len(fields) < len(columns) or any(field.strip() for field in fields[len(columns) :]):
        return Line(where, {}, f"{len(fields)} fields, and {len(columns)} columns")
    return _named(dict(zip(columns, fields, strict=False)), where)


def _columns(line: str, delimiter: str) -> list[str]:
    return [column.strip().strip('"').strip() for column in line.split(delimiter)]


def _is_header(columns: list[str]) -> bool:
    known = {_CANONICAL.get(_key(column)) for column in columns}
    return "audio" in known and not known.isdisjoint(TEXTS)


def _unquoted(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """A table in which a quotation mark is a letter like any other: every line is a row."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, [unquoted(field) for field in line.split(delimiter)]


def _quoted(path: Path, text: str, delimiter: str, is_audio: Callable[[str], bool]) -> Iterator[tuple[int, list[str]]]:
    """A table whose quoted fields may hold line ends, but no line that names a recording: a stray mark opened those."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    csv.field_size_limit(2**30)
    lines, before = text.split("\n"), 0
    try:
        for fields in reader:
            within = (field.strip() for line in lines[before + 1 : reader.line_num] for field in line.split(delimiter))
            if any(field.lower().endswith(AUDIO_SUFFIXES) or is_audio(field) for field in within if field):
                raise csv.Error("a quotation mark opens a field that runs over rows further down")
            before = reader.line_num
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(
            f"listing {path}, line {before + 1}: {error}. Write a quotation mark inside a field twice, within quotes; "
            "or save the table as .tsv, where it needs nothing"
        ) from error


def _key(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _named(row: dict[str, Any], where: str) -> Line:
    """By canonical names. Of several columns for one thing the first that ``NAMES`` lists and that holds anything."""
    found: dict[str, Any] = {}
    rank: dict[str, int] = {}
    for column, value in row.items():
        key = _key(str(column))
        own = _CANONICAL.get(key, key)
        place = NAMES[own].index(key) if own in NAMES and key in NAMES[own] else 0
        if own not in found or (value not in (None, "") and (found[own] in (None, "") or place < rank[own])):
            found[own], rank[own] = value, place
    return Line(where, found, columns=(*row,))
