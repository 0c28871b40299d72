"""Your own recordings: ``x.wav`` beside ``x.txt``, or audio named by a listing (JSONL, CSV, TSV)."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hebrew_asr.errors import DataError
from hebrew_asr.sources.columns import Place, choose_adapter
from hebrew_asr.sources.rows import ROWS_PER_UNIT, Row, Source, Unit
from hebrew_asr.text.prompt import parse_target

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm")
LISTING_NAMES = ("clips.jsonl", "metadata.jsonl", "metadata.csv", "metadata.tsv")
LISTING_SUFFIXES = (".jsonl", ".csv", ".tsv")
_AUDIO_COLUMNS = ("audio", "file_name", "audio_filepath", "path", "file")  # ours, datasets' AudioFolder, NeMo, TSVs


@dataclass(frozen=True)
class ListedUnit:
    """Rows that a listing named; the audio is read where the unit is converted."""

    dataset: str
    first_row: int
    held_out: bool
    listed: tuple[Row, ...]

    shard = 0

    @property
    def num_rows(self) -> int:
        return len(self.listed)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Rows with their position in the listing."""
        return enumerate(self.listed, self.first_row)


@dataclass(frozen=True)
class Listing:
    """All rows of a folder, as one shard."""

    dataset: str
    name: str
    held_out: bool
    listed: tuple[Row, ...]
    size_bytes: int

    bytes_to_download = 0

    def units(self) -> list[Unit]:
        """Units of ``ROWS_PER_UNIT`` rows."""
        return [
            ListedUnit(self.dataset, first, self.held_out, self.listed[first : first + ROWS_PER_UNIT])
            for first in range(0, len(self.listed), ROWS_PER_UNIT)
        ]


def open_folder(name: str, path: Path, *, held_out: bool) -> Source:
    """Open a listing file, or a folder that holds one, or a folder of audio files with texts of the same name.

    Raises:
        DataError: there is nothing to read, a line is wrong, or an audio file has no text (the first few are named).
    """
    listing = path if path.is_file() else _listing_in(path)
    rows = _listed_rows(listing) if listing else _paired_rows(path)
    sizes = [_size_of(row) for row in rows]
    content = hashlib.sha256()
    for row, size in zip(rows, sizes, strict=True):
        content.update(f"{row.id}\0{row.text}\0{size}\n".encode())
    shard = Listing(name, listing.name if listing else path.name, held_out, tuple(rows), sum(sizes))
    return Source(name, f"sha256:{content.hexdigest()}", (shard,))


def _listing_in(folder: Path) -> Path | None:
    for name in LISTING_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in LISTING_SUFFIXES)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"source {folder}: several listings ({names}); name one of them with --source")
    return found[0] if found else None


def _size_of(row: Row) -> int:
    try:
        return Path(str(row.audio)).stat().st_size
    except OSError as error:
        raise DataError(f"audio file not found: {row.audio} (named for {row.id!r})") from error


def _paired_rows(folder: Path) -> list[Row]:
    audio = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not audio:
        suffixes = " ".join(AUDIO_SUFFIXES)
        raise DataError(f"source {folder}: no parquet files, no listing ({', '.join(LISTING_NAMES)}) and no {suffixes}")
    silent = [path.name for path in audio if not path.with_suffix(".txt").is_file()]
    if silent:
        raise DataError(f"source {folder}: no .txt beside {len(silent)} audio files: {', '.join(silent[:5])}")
    speakers = {_subfolder(path, folder) for path in audio}
    return [
        Row(
            id=str(path.relative_to(folder)),
            text=_read_text(path.with_suffix(".txt")),
            audio=str(path),
            # One subfolder per speaker or session is the usual layout; a single one says nothing.
            groups=(f"session:{_subfolder(path, folder)}",) if len(speakers) > 1 else (),
        )
        for path in audio
    ]


def _subfolder(path: Path, folder: Path) -> str:
    return str(path.parent.relative_to(folder))


def _listed_rows(listing: Path) -> list[Row]:
    rows: list[Row] = []
    seen: set[str] = set()
    for number, record in _records(listing):
        where = f"{listing}, line {number}"
        audio = next((record[column] for column in _AUDIO_COLUMNS if record.get(column)), None)
        if not isinstance(audio, str):
            raise DataError(f"{where}: no audio path (looked for {', '.join(_AUDIO_COLUMNS)})")
        identity = str(record.get("id") or audio)
        if identity in seen:
            raise DataError(f"{where}: {identity!r} was listed before")
        seen.add(identity)
        duration_s = _number(record.get("duration_s", record.get("duration")))
        record |= {"audio": str(_located(audio, listing.parent)), "duration_s": duration_s}
        row = choose_adapter(record, where=where).convert(record, Place(identity, listing.parent))
        # The official fine-tuning schema wraps the transcript; unwrapped here, wrapped again when written.
        rows.append(replace(row, text=parse_target(row.text)[1]))
    if not rows:
        raise DataError(f"listing {listing} holds no rows")
    return rows


def _located(audio: str, folder: Path) -> Path:
    """Common Voice keeps its clips one folder further down than its TSV files say."""
    path = folder / audio
    return path if path.exists() or not (folder / "clips" / audio).exists() else folder / "clips" / audio


def _records(listing: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with listing.open(encoding="utf-8-sig", newline="") as lines:
        try:
            if listing.suffix == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _json_object(line, f"{listing}, line {number}")
            else:
                reader = csv.DictReader(lines, delimiter="\t" if listing.suffix == ".tsv" else ",", restkey="(no name)")
                for record in reader:
                    yield reader.line_num, record
        except UnicodeDecodeError as error:
            raise DataError(f"listing {listing} is not UTF-8: {error}") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object")
    return record


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"transcript {path} is not UTF-8: {error}") from error


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
