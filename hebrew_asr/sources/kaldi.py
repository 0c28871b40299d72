"""A data folder of Kaldi: ``wav.scp``, ``text`` and, where they are, ``segments`` and ``utt2spk``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hebrew_asr.errors import DataError
from hebrew_asr.sources.listed import in_stretches
from hebrew_asr.sources.rows import Row
from hebrew_asr.sources.walk import file_problem
from hebrew_asr.text.reading import read_text

WAV_SCP = "wav.scp"
_IN_ARCHIVE = re.compile(r".+\.ark:\d+")
_RECIPE_DEPTH = 3  # data/train lies two below the folder in which a recipe runs, and to which its paths refer


def kaldi_rows(folder: Path) -> list[Row]:
    """A row for every utterance that the tables name.

    A recording that ``wav.scp`` gives as a command is refused by name: no command of a data set is ever run.

    Raises:
        DataError: a table cannot be read, or names one thing twice.
    """
    recordings, texts, speakers = (_table(folder / name) for name in (WAV_SCP, "text", "utt2spk"))
    if all(speaker == utterance for utterance, speaker in speakers.items()):  # what is written where none is known
        speakers = {}
    segments = {name: value.split() for name, value in _table(folder / "segments").items()}
    stretches = segments or {name: [name] for name in recordings}
    rows = [
        _row(utterance, parts, recordings, texts.get(utterance, ""), speakers.get(utterance), folder)
        for utterance, parts in stretches.items()
    ]
    lost = ("no recording", "its text names no segment or recording")
    rows += [
        Row(utterance, words, "", problem=lost) for utterance, words in texts.items() if utterance not in stretches
    ]
    return in_stretches(rows)


def _row(
    utterance: str, parts: list[str], recordings: dict[str, str], words: str, speaker: str | None, folder: Path
) -> Row:
    groups = [f"speaker:{speaker}"] if speaker else []
    place = recordings.get(parts[0] if parts else "", "")
    path = _located(place, folder)
    problem: tuple[str, str] | None
    span_s: tuple[float, float | None] | None = None
    if not place:
        problem = "no recording", f"{WAV_SCP} does not name {' '.join(parts[:1])!r}"
    elif place.endswith("|") or place.startswith("|"):
        problem = (
            "a command, not a file",
            f"{place[:200]}: it is not run; write its output to a file, and name that",
        )
    elif _IN_ARCHIVE.fullmatch(place):
        problem = "an archive, not a file", f"{place[:200]}: copy it out with wav-copy"
    else:
        problem = file_problem(path)
    if len(parts) > 1:
        groups.append(f"recording:{parts[0]}")
        try:
            start_s, end_s = float(parts[1]), float(parts[2])
            span_s = (start_s, end_s if end_s != -1 else None)  # -1: to the end
            if not start_s >= 0 or (span_s[1] is not None and not end_s > start_s):  # NaN is neither
                raise ValueError
        except (ValueError, IndexError):
            problem = "malformed times", f"segments: {utterance} {' '.join(parts)}"
    if problem is None and not words:
        problem = "no text", "the table text does not name it"
    return Row(utterance, words, str(path), tuple(groups), span_s=span_s, problem=problem)


def _located(place: str, folder: Path) -> Path:
    """Paths are relative to where the recipe runs, a few folders up."""
    found = (base / place for base in [folder, *folder.parents][: _RECIPE_DEPTH + 1])
    return next((path for path in found if place and os.path.lexists(path)), folder / place)


def _table(path: Path) -> dict[str, str]:
    """First word of each line, and the rest of it; empty where there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.strip().split(maxsplit=1) for line in read_text(path).split("\n"))
    found: dict[str, str] = {}
    for name, *rest in filter(None, lines):
        value = rest[0] if rest else ""
        if found.setdefault(name, value) != value:
            raise DataError(
                f"{path} names {name} twice, with {found[name][:60]!r} and {value[:60]!r}: keep one of them"
            )
    return found
