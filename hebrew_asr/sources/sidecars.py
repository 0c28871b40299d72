"""Recordings and their texts: of the same name beside them, plain or with times, in a folder of texts, or in a list."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError
from hebrew_asr.sources.lists import Listed, across_folders, by_name, is_kind, read_list, without_language
from hebrew_asr.sources.rows import Row
from hebrew_asr.sources.segments import parse_elan, parse_json, parse_labels, parse_table, text_alone
from hebrew_asr.sources.subtitles import parse_subtitles
from hebrew_asr.sources.textgrid import parse_textgrid
from hebrew_asr.sources.walk import file_problem
from hebrew_asr.text.plain import not_plain, words_alone
from hebrew_asr.text.reading import read_text
from hebrew_asr.text.timestamps import Segment, from_cues, has_timestamps

_TIMED: dict[str, Callable[[str], list[Segment]]] = {
    ".textgrid": parse_textgrid,
    ".eaf": parse_elan,
    ".srt": parse_subtitles,
    ".vtt": parse_subtitles,
    ".sbv": parse_subtitles,
    ".json": parse_json,
    ".tsv": parse_table,
}
TEXT_SUFFIXES = (".textgrid", ".eaf", ".srt", ".vtt", ".sbv", ".txt", ".lab", ".json", ".tsv")
"""In order of preference, where a recording has several: times are worth more than none."""
_ONLY_BESIDE = (".json", ".tsv")
"""Texts only where a recording has their name: else they may be anything."""
_SPLITS = re.compile(r"train|training|test|testing|dev|val|valid|validation|eval|data", re.I)


def is_audio(path: Path) -> bool:
    """Whether a file is called as a recording is."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def is_text(path: Path) -> bool:
    """Whether a file is called as a transcript is, wherever it lies."""
    return path.suffix.lower() in TEXT_SUFFIXES and path.suffix.lower() not in _ONLY_BESIDE


def texts_among(files: Iterable[Path]) -> list[Path]:
    """The files that are taken for transcripts."""
    files = list(files)
    beside = {path for path in named_like_recordings(files) if path.suffix.lower() in _ONLY_BESIDE}
    return [path for path in files if path in beside or is_text(path)]


def named_like_recordings(files: Iterable[Path]) -> list[Path]:
    """The files beside a recording that have its name."""
    files = list(files)
    recordings = {_stem(path) for path in files if is_audio(path)}
    return [path for path in files if not is_audio(path) and _stem_of_text(path, recordings) in recordings]


def paired_rows(folder: Path, files: Iterable[Path]) -> list[Row]:
    """A row for every recording among ``files``, and one for every text whose recording is not there."""
    files = list(files)
    recordings: dict[str, list[Path]] = defaultdict(list)
    texts: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if is_audio(path):
            recordings[_stem(path)].append(path)
    for path in texts_among(files):
        texts[_stem_of_text(path, recordings)].append(path)
    rows, listed = _from_elsewhere(folder, recordings.keys() - texts.keys(), texts, recordings.keys())
    for stem, paths in recordings.items():
        first, *others = sorted(paths, key=lambda path: (AUDIO_SUFFIXES.index(path.suffix.lower()), path.name))
        rows.append(_row(first, texts.pop(stem, []), folder, listed.get(stem)))
        again = ("recorded in two files", f"{first.name} of the same name is taken")
        rows += [Row(_name(path, folder), "", str(path), problem=again) for path in others]
    lost = ("no recording", "no audio file of this name")
    rows += [Row(_name(path, folder), "", "", problem=lost) for paths in texts.values() for path in paths]
    return grouped(sorted(rows, key=lambda row: row.id))


def _from_elsewhere(
    folder: Path, lonely: set[str], texts: dict[str, list[Path]], recordings: Collection[str]
) -> tuple[list[Row], dict[str, str]]:
    """Finds texts of recordings that have none beside them.

    What lies in a folder of texts moves within ``texts`` to its recording; lists leave ``texts``.

    Returns:
        A row for each line of a list that is of no recording, and by recording what lists say.
    """
    for stem, other in across_folders(lonely, texts.keys() - recordings).items():
        texts[stem] = texts.pop(other)
    found, unread = Listed(), by_name(lonely - texts.keys())
    for stem in sorted(texts.keys() - recordings) if unread else ():
        texts[stem] = [path for path in texts[stem] if not read_list(path, unread, found)]
    rows = [
        Row(f"{_name(path, folder)}, line {number}", "", "", problem=problem)
        for path, number, problem, stem in found.problems
        if problem[0] != "malformed line" or stem not in found.texts  # another list says it: MLS has times in one, too
    ]
    return rows, found.texts


def has_pairs(files: Iterable[Path]) -> bool:
    """Whether any recording has a text of its name."""
    return any(map(is_text, named_like_recordings(files)))


def _stem(path: Path) -> str:
    """The path without its suffix."""
    return unicodedata.normalize("NFC", str(path.with_suffix("")))  # macOS takes letters apart in file names


def _stem_of_text(path: Path, recordings: Collection[str]) -> str:
    """What a text has in common with its recording: all but its suffix, and if none is called so, one language tag or
    ``.wav`` of ``.wav.txt``.
    """
    stem = _stem(path)
    if stem in recordings:
        return stem
    return _stem(Path(stem)) if is_audio(Path(stem)) else without_language(stem)


def _row(audio: Path, texts: list[Path], folder: Path, listed: str | None = None) -> Row:
    row = Row(_name(audio, folder), words_alone(listed or ""), str(audio), problem=file_problem(audio))
    if row.problem or listed is not None:
        return row
    if not texts:
        suffixes = ", ".join(("TextGrid" if s == ".textgrid" else s.lstrip(".")) for s in TEXT_SUFFIXES)
        return replace(row, problem=("no text", f"no file of this name with one of the suffixes {suffixes}"))
    path = min(texts, key=lambda path: (TEXT_SUFFIXES.index(path.suffix.lower()), path.name))
    try:
        text = read_text(path)
        parse = _TIMED.get(path.suffix.lower(), parse_labels)
        if parse is parse_json and (alone := text_alone(text)) is not None:
            return replace(row, text=words_alone(alone))
        segments = parse(text)
        if parse is parse_labels and not segments:
            if fault := not_plain(text):
                raise ValueError(fault)
            return replace(row, text=words_alone(text), timed=has_timestamps(text))
        timing = from_cues(replace(segment, text=words_alone(segment.text)) for segment in segments)
    except DataError as error:
        return replace(row, problem=("unreadable text", str(error).replace(f"{folder}/", "")))
    except (OverflowError, ValueError) as error:  # a time of 400 digits is too large for a float
        return replace(row, problem=("unreadable text", f"{path.name}: {error}"))
    words = " ".join(segment.text for segment in timing.segments if not segment.fault)
    return replace(row, text=words, timing=timing)


def grouped(rows: list[Row]) -> list[Row]:
    """Rows that name no group, by sub-folders: one for each speaker or session is the usual layout.

    One alone says nothing, nor do train and clips. Of folders within folders the outermost that differ count:
    speakers, of speakers' sessions.
    """
    paths = [
        [part for part in Path(row.id).parent.parts if not (_SPLITS.fullmatch(part) or is_kind(part))] for row in rows
    ]
    inside = [path for path in paths if path]
    while inside and all(path[:1] == inside[0][:1] for path in inside) and len(inside) == len(paths):
        paths = [path[1:] for path in paths]
        inside = [path for path in paths if path]
    found = {path[0] for path in inside}
    said = len(found) > 1 or len(inside) < len(paths)
    with_groups = []
    for row, path in zip(rows, paths, strict=True):
        groups = [f"session:{path[0]}"] if path and said else []
        if row.timing or row.timed:
            groups.append(f"recording:{row.id}")
        with_groups.append(replace(row, groups=row.groups or tuple(groups)))
    return with_groups


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
