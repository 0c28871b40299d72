"""Your own recordings: a listing of them, a data folder of Kaldi, or texts of the same name beside them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hebrew_asr.errors import DataError
from hebrew_asr.files import encoded
from hebrew_asr.sources.kaldi import WAV_SCP, kaldi_rows
from hebrew_asr.sources.listed import listed_rows
from hebrew_asr.sources.listings import LISTING_SUFFIXES
from hebrew_asr.sources.rows import ROWS_PER_UNIT, Row, Source, Unit
from hebrew_asr.sources.sidecars import (
    grouped,
    has_pairs,
    is_audio,
    named_like_recordings,
    paired_rows,
    texts_among,
)
from hebrew_asr.sources.walk import files_in
from hebrew_asr.text.plain import bare_names
from hebrew_asr.text.reading import read_text
from hebrew_asr.text.sets import split_of

LISTING_NAMES = ("clips.jsonl", "metadata.jsonl", "metadata.csv", "metadata.tsv")
_SPLITS = ("train", "test", "testing", "dev", "val", "valid", "validation", "eval")
_COMMON_VOICE = ("validated.tsv", "train.tsv")
_SUBTITLES = (".ass", ".ssa", ".lrc", ".ttml", ".dfxp", ".sub", ".smi")
_OFFICE = (".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".rtf", ".pdf")
_LONGEST_PATH = 4096
_NAMED_SHARE = 0.02
_HALF = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair; Python has them in names for bytes that are not UTF-8."""
_UNNAMED = ("not in the listing", "the listing of its folder does not name it")


@dataclass(frozen=True)
class ListedUnit:
    """Rows that a listing named; the audio is read where the unit is converted."""

    dataset: str
    shard: int
    first_row: int
    held_out: bool
    listed: tuple[Row, ...]

    @property
    def num_rows(self) -> int:
        return len(self.listed)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Rows with their position in the listing."""
        return enumerate(self.listed, self.first_row)


@dataclass(frozen=True)
class Listing:
    """Rows of a folder, as one shard."""

    dataset: str
    index: int
    name: str
    held_out: bool
    listed: tuple[Row, ...]
    size_bytes: int

    bytes_to_download = 0

    def units(self) -> list[Unit]:
        """Units of ``ROWS_PER_UNIT`` rows."""
        return [
            ListedUnit(self.dataset, self.index, first, self.held_out, self.listed[first : first + ROWS_PER_UNIT])
            for first in range(0, len(self.listed), ROWS_PER_UNIT)
        ]


@dataclass(frozen=True)
class _Found:
    """What a folder holds: rows by the name of their part, and whether that part is test data."""

    parts: tuple[tuple[str, bool, list[Row]], ...]
    notes: tuple[str, ...] = ()


def open_folder(name: str, path: Path, *, held_out: bool) -> Source:
    """Open a listing, or a folder of recordings in one of the layouts of this file's first line.

    Raises:
        DataError: there is nothing to read, or a listing cannot be.
    """
    found = _Found(((path.name, False, listed_rows(path)),)) if path.is_file() else _found_in(path)
    content = hashlib.sha256()
    shards = []
    for index, (part, is_test, found_rows) in enumerate(found.parts):
        rows = list(map(_in_unicode, found_rows))
        sizes = [row.size_bytes for row in rows]
        for row, size in zip(rows, sizes, strict=True):
            content.update(f"{row.id}\0{row.text}\0{size}\0{row.timing or ''}{row.span_s or ''}\n".encode())
        shards.append(Listing(name, index, part, held_out or is_test, tuple(rows), sum(sizes)))
    if not any(shard.listed for shard in shards):
        raise DataError(f"source {path}: it holds no rows")
    notes = (*found.notes, *_of_speakers(row for shard in shards for row in shard.listed))
    return Source(name, f"sha256:{content.hexdigest()}", tuple(shards), notes)


def _of_speakers(rows: Iterable[Row]) -> list[str]:
    """What to say of lines that seem to begin with a name, where many do."""
    texts = (
        text for row in rows for text in ([part.text for part in row.timing.segments] if row.timing else [row.text])
    )
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    names = bare_names(lines)
    if not names or names.total() < _NAMED_SHARE * len(lines):
        return []
    most = names.most_common(1)[0][0]
    return [
        f"{names.total()} of {len(lines)} lines begin with words that others begin with and a colon, as {most!r}: if "
        f"these say who speaks, write [{most}]: or leave them out, else they are learned as what is said"
    ]


def _in_unicode(row: Row) -> Row:
    """A row that UTF-8 can hold: in names that are not UTF-8, as in old archives, a byte becomes ``\\udcff``.

    A text with such a half of a surrogate pair, which JSON can spell, has no meaning: it is told as the row's problem.
    """
    is_read = not _HALF.search(row.text)
    if is_read and not any(map(_HALF.search, (row.id, *row.groups, *(row.problem or ())))):
        return row
    reason, detail = row.problem or ("unreadable text", "it holds half a surrogate pair, which is no character")
    return replace(
        row,
        id=encoded(row.id).decode(),
        text=row.text if is_read else "",
        groups=tuple(encoded(group).decode() for group in row.groups),
        problem=None if is_read and row.problem is None else (reason, encoded(detail).decode()),
    )


def _found_in(folder: Path) -> _Found:
    files = files_in(folder)
    if (folder / WAV_SCP).is_file():
        return _with_the_rest(
            _Found(((WAV_SCP, False, kaldi_rows(folder)),), ("a data folder of Kaldi",)), files, folder
        )
    listings = _listings_of(folder, files)
    if len(listings) > 1 and not has_pairs(files):
        (place, *others) = {path.parent for path in listings}
        found = _each_of(folder, listings) if others else _splits_of(place, listings)
        return _with_the_rest(found, files, folder)
    if len(listings) == 1 and (listings[0].name in LISTING_NAMES or not has_pairs(files)):
        parts, notes = _by_side(listings[0].name, listed_rows(listings[0]))
        return _with_the_rest(_Found(parts, (f"listed in {listings[0].name}", *notes)), files, folder)
    if (tables := [path for path in files if path.name == WAV_SCP]) and not has_pairs(files):
        return _with_the_rest(_each_of(folder, tables), files, folder)
    return _pairs(folder, files, listings)


def _listings_of(folder: Path, files: list[Path]) -> list[Path]:
    """The listings in the folder itself, or those below it that are called so, or the only one, or Common Voice's.

    A table of one recording's name is its own.
    """
    for name in LISTING_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    own = {*named_like_recordings(files)}
    tables = [path for path in files if path.suffix.lower() in LISTING_SUFFIXES and path not in own]
    tables = [path for path in tables if path.suffix.lower() != ".json"] or tables  # which hold all kinds of things
    here = [path for path in tables if path.parent == folder]
    called = [path for path in tables if path.name in LISTING_NAMES]
    of_one_folder = len({path.parent for path in tables}) == 1
    is_common_voice = of_one_folder and (tables[0].parent / "clips").is_dir()  # below cv-corpus-21.0-2025-03-14
    return here or called or (tables if len(tables) == 1 or is_common_voice else [])


def _splits_of(folder: Path, listings: list[Path]) -> _Found:
    """What Common Voice's volunteers confirmed, less the speakers of its test sets; or the only listing that is called
    train, where all others are called as sets of evaluation.

    Raises:
        DataError: the listings are others, and which one is meant cannot be told.
    """
    names = [path.name for path in listings]
    main = next((name for name in _COMMON_VOICE if name in names), None)
    tests = [name for name in ("dev.tsv", "test.tsv") if name in names and _has_rows(folder / name)]
    if main is None or not (folder / "clips").is_dir() or (main == "train.tsv" and not tests):
        splits = [split_of(name) for name in names]
        main = names[splits.index("train")] if splits.count("train") == 1 and None not in splits else None
        tests = [name for name in names if name != main]
    if main is None:
        raise DataError(f"source {folder}: several listings ({', '.join(names)}); name one of them with --source")
    parts = [(main, False, listed_rows(folder / main)), *((name, True, listed_rows(folder / name)) for name in tests)]
    kept_out = f", and what {' and '.join(tests)} hold is kept out" if tests else ""
    return _Found(tuple(parts), (f"{main} is taken{kept_out}",))


def _has_rows(listing: Path) -> bool:
    """Whether there is more than a header: of a small language a test set may be empty."""
    return "\n" in read_text(listing).strip()


def _each_of(folder: Path, listings: list[Path]) -> _Found:
    """Listings of a folder each, or its tables of Kaldi, as of splits or of speakers."""
    rows = []
    for listing in listings:
        place = listing.parent.relative_to(folder).as_posix()
        found = kaldi_rows(listing.parent) if listing.name == WAV_SCP else listed_rows(listing)
        rows += [replace(row, id=f"{place}/{row.id}") for row in found]
    parts, notes = _by_side(folder.name, grouped(rows))
    names = ", ".join(path.relative_to(folder).as_posix() for path in listings[:3])
    return _Found(parts, (f"{len(listings)} listings, of a folder each ({names}{', …' * (len(listings) > 3)})", *notes))


def _by_side(name: str, rows: list[Row]) -> tuple[tuple[tuple[str, bool, list[Row]], ...], list[str]]:
    """Rows as parts, those in folders of test data as one of their own, and what to say of it."""
    tests = [row for row in rows if _is_test(row)]
    if not tests or len(tests) == len(rows):  # all of it: then the name says nothing
        return ((name, False, rows),), []
    note = f"{len(tests)} files in folders called as test sets are kept out"
    return ((name, False, [row for row in rows if not _is_test(row)]), ("test", True, tests)), [note]


def _pairs(folder: Path, files: list[Path], listings: list[Path]) -> _Found:
    if not any(is_audio(path) for path in files):
        suffixes = ", ".join(sorted({path.suffix for path in files if path.suffix})[:8]) or "nothing"
        raise DataError(
            f"source {folder}: no parquet files, no listing (.jsonl, .csv or .tsv), no {WAV_SCP} and no "
            f"recording in it; found: {suffixes}"
        )
    parts, kept_out = _by_side(folder.name, paired_rows(folder, files))
    notes = [f"{table.name} is not read, since recordings have texts beside them" for table in listings] + kept_out
    read = {*texts_among(files)}
    other = Counter(path.suffix.lower() or path.name for path in files if not (is_audio(path) or path in read))
    for table in listings:
        other[table.suffix.lower()] -= 1
    kinds = [f"{count} {suffix}" for suffix, count in (+other).most_common()]
    kinds[8:] = [f"and {len(kinds) - 8} other kinds"] if kinds[8:] else []
    notes += [f"passed over: {', '.join(kinds)}"] if kinds else []
    if any(other[suffix] > 0 for suffix in _OFFICE):
        notes.append("tables are read as csv, tsv or JSON, and texts as txt: save them so")
    if any(other[suffix] > 0 for suffix in _SUBTITLES):
        notes.append("subtitles are read as srt, vtt or sbv: `ffmpeg -i NAME.ass NAME.srt` converts most others")
    notes += [
        f"{path.name} is a link to a folder that was copied as a text: copy the folder itself, or link it anew"
        for path in files
        if not path.suffix and _leads_to_folder(path)
    ]
    return _Found(parts, tuple(notes))


def _leads_to_folder(path: Path) -> bool:
    """Whether a file holds nothing but the path of a folder, as links become where a disk or an archive knows none."""
    try:
        return 0 < path.stat().st_size < _LONGEST_PATH and (path.parent / path.read_text()).is_dir()
    except (OSError, ValueError):
        return False


def _is_test(row: Row) -> bool:
    """Whether the folder nearest to a file that is called after a split is called after one of evaluation."""
    words = [part.lower() for part in Path(row.id).parent.parts if part.lower() in (*_SPLITS, "training")]
    return bool(words) and not words[-1].startswith("train")


def _with_the_rest(found: _Found, files: list[Path], folder: Path) -> _Found:
    """And the recordings in the folder that no row of a listing names."""
    named = {os.path.normpath(str(row.audio)) for _, _, rows in found.parts for row in rows if row.audio}
    lost = [path for path in files if is_audio(path) and str(path) not in named]
    if lost:  # perhaps named by another path
        real = set(map(_real, named))
        lost = [path for path in lost if _real(str(path)) not in real]
    if not lost:
        return found
    (name, is_test, rows), *others = found.parts
    rows = [*rows, *(Row(path.relative_to(folder).as_posix(), "", str(path), problem=_UNNAMED) for path in lost)]
    return _Found(((name, is_test, rows), *others), found.notes)


def _real(path: str) -> str:
    """A path without links; as it is where no file can have this name, with a NUL or half a surrogate pair in it."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return path
