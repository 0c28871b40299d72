"""Recordings with a text of the same name beside them: plain, or with times as subtitles and TextGrids have."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError
from hebrew_asr.sources.reading import read_text
from hebrew_asr.sources.rows import Row
from hebrew_asr.sources.subtitles import parse_subtitles
from hebrew_asr.sources.textgrid import parse_textgrid
from hebrew_asr.sources.timestamps import Segment, from_cues, has_timestamps
from hebrew_asr.sources.walk import file_problem

_TIMED: dict[str, Callable[[str], list[Segment]]] = {
    ".textgrid": parse_textgrid,
    ".srt": parse_subtitles,
    ".vtt": parse_subtitles,
}
TEXT_SUFFIXES = (*_TIMED, ".txt", ".lab")
"""In order of preference, where a recording has several: times are worth more than none."""
_LANGUAGE = re.compile(r"\.(?:he|iw|heb|he-il|hebrew)$", re.I)
_SAYS_NOTHING = re.compile(
    r"train|training|test|testing|dev|val|valid|validation|eval|clips?|wavs?|audio|data|recordings?", re.I
)


def is_audio(path: Path) -> bool:
    """Whether a file is called as a recording is."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def is_text(path: Path) -> bool:
    """Whether a file is called as a transcript is."""
    return path.suffix.lower() in TEXT_SUFFIXES


def paired_rows(folder: Path, files: Iterable[Path]) -> list[Row]:
    """A row for every recording among ``files``, and one for every text whose recording is not there."""
    recordings: dict[str, list[Path]] = defaultdict(list)
    texts: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if is_audio(path):
            recordings[_stem(path)].append(path)
        elif is_text(path):
            texts[_stem(path)].append(path)
    rows = []
    for stem, paths in recordings.items():
        first, *others = sorted(paths, key=lambda path: (AUDIO_SUFFIXES.index(path.suffix.lower()), path.name))
        rows.append(_row(first, texts.get(stem, []), folder))
        again = ("recorded in two files", f"{first.name} of the same name is taken")
        rows += [Row(_name(path, folder), "", str(path), problem=again) for path in others]
    for stem in texts.keys() - recordings.keys():
        lost = ("no recording", "no audio file of this name")
        rows += [Row(_name(path, folder), "", "", problem=lost) for path in texts[stem]]
    return _grouped(sorted(rows, key=lambda row: row.id))


def has_pairs(files: Iterable[Path]) -> bool:
    """Whether any recording has a text of its name."""
    stems: dict[bool, set[str]] = {True: set(), False: set()}
    for path in files:
        if is_audio(path) or is_text(path):
            stems[is_audio(path)].add(_stem(path))
    return not stems[True].isdisjoint(stems[False])


def _stem(path: Path) -> str:
    """What a recording and its text have in common: the path without its suffix, one language tag, or ``.wav.txt``."""
    stem = path.with_suffix("")
    if is_text(path):
        stem = stem.with_suffix("") if is_audio(stem) else Path(_LANGUAGE.sub("", str(stem)))
    return unicodedata.normalize("NFC", str(stem))  # macOS takes letters apart in file names


def _row(audio: Path, texts: list[Path], folder: Path) -> Row:
    row = Row(_name(audio, folder), "", str(audio), problem=file_problem(audio))
    if row.problem:
        return row
    if not texts:
        suffixes = ", ".join(("TextGrid" if s == ".textgrid" else s.lstrip(".")) for s in TEXT_SUFFIXES)
        return replace(row, problem=("no text", f"no file of this name with one of the suffixes {suffixes}"))
    path = min(texts, key=lambda path: (TEXT_SUFFIXES.index(path.suffix.lower()), path.name))
    try:
        text = read_text(path)
        parse = _TIMED.get(path.suffix.lower())
        if parse is None:
            return replace(row, text=text, timed=has_timestamps(text))
        timing = from_cues(parse(text))
    except DataError as error:
        return replace(row, problem=("unreadable text", str(error).replace(f"{folder}/", "")))
    except ValueError as error:
        return replace(row, problem=("unreadable text", f"{path.name}: {error}"))
    words = " ".join(segment.text for segment in timing.segments if not segment.fault)
    return replace(row, text=words, timing=timing)


def _grouped(rows: list[Row]) -> list[Row]:
    """A sub-folder for each speaker or session is the usual layout. One alone says nothing, nor do train and clips.

    Of folders within folders the outermost that differ count: speakers, of speakers' sessions.
    """
    paths = [[part for part in Path(row.id).parent.parts if not _SAYS_NOTHING.fullmatch(part)] for row in rows]
    inside = [path for path in paths if path]
    while inside and all(path[:1] == inside[0][:1] for path in inside) and len(inside) == len(paths):
        paths = [path[1:] for path in paths]
        inside = [path for path in paths if path]
    found = {path[0] for path in inside}
    said = len(found) > 1 or len(inside) < len(paths)
    grouped = []
    for row, path in zip(rows, paths, strict=True):
        groups = [f"session:{path[0]}"] if path and said else []
        if row.timing or row.timed:
            groups.append(f"recording:{row.id}")
        grouped.append(replace(row, groups=tuple(groups)))
    return grouped


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
