"""What converting one unit leaves behind: a part, one JSON line per clip kept, dropped or held out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json, write_atomically


@dataclass(slots=True)
class Record:
    """The fate of one clip so far."""

    fate: Literal["kept", "dropped", "held out"]
    id: str
    shard: int
    row: int
    """Position in the shard; clips cut from one recording share it."""
    duration_s: float = 0.0
    """0 when the audio was not decoded."""
    transcript: str = ""
    """Target text, without its prompt."""
    reason: str = ""
    """Why it was dropped."""
    detail: str = ""
    """What exactly was wrong, where the reason alone does not say."""
    audio: str = ""
    """Path of the clip inside the prepared folder."""
    size_bytes: int = 0
    """Size of that file."""
    held: str = ""
    """Where its sound waits for a shard, with that of its whole unit: a path inside the prepared folder."""
    offset_bytes: int = 0
    """Where it begins there."""
    fingerprint: str = ""
    """MD5 of the 16 kHz 16-bit samples."""
    words: str = ""
    """Transcript in the strict mode, by which equal sentences are found."""
    groups: tuple[str, ...] = ()
    """Groups of its row."""
    whole: bool = True
    """The clip is a whole recording, not cut from a longer one."""
    retake: bool = False
    """A second transcription of the same recording."""


def part_path(work: Path, unit_name: str) -> Path:
    """Where the part of a unit lies. It exists if and only if the unit is done."""
    return work / "parts" / f"{unit_name}.jsonl"


def write_part(path: Path, records: Iterable[Record]) -> None:
    """Write a part atomically. Fields that have their default value are left out."""
    lines = [json.dumps(_compact(record), ensure_ascii=False) for record in records]
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_part(path: Path) -> list[Record]:
    """Read a part. Raises DataError when it is not one."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [from_json(line) for line in lines]
        return [_record(row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot read {path}: {error}. Delete the file and prepare again: its unit is redone"
        ) from error


def _record(row: dict[str, Any]) -> Record:
    return Record(**row | {"groups": tuple(row.get("groups", ()))})


_REQUIRED = ("fate", "id", "shard", "row")
_DEFAULTS = {field.name: field.default for field in fields(Record) if field.name not in _REQUIRED}


def _compact(record: Record) -> dict[str, object]:
    kept = {name: getattr(record, name) for name in _REQUIRED}
    return kept | {n: value for n, default in _DEFAULTS.items() if (value := getattr(record, n)) != default}
