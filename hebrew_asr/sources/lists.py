"""Texts that do not lie beside their recording: lists of a name and a text a line, and folders of texts alone."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hebrew_asr.audio.source import AUDIO_SUFFIXES
from hebrew_asr.errors import DataError
from hebrew_asr.sources.reading import read_text

_KINDS = re.compile(
    r"audios?|wavs?\d*|flacs?|mp3s?|clips?|recordings?|sounds?|txts?|texts?|transcripts?|transcriptions?|labels?|labs?"
    r"|srts?|vtts?|subs|subtitles|captions|textgrids?|הקלטות|אודיו|תמלולים|תמלול|טקסט",
    re.I,
)


def is_kind(folder: str) -> bool:
    """Whether a folder is called after what kind of files it holds."""
    return _KINDS.fullmatch(folder) is not None


def across_folders(recordings: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Recordings and texts, as paths without suffixes, that differ only in folders of kinds: ``wav/a``, ``txt/a``.

    Where several could be meant, none is.
    """
    found: list[dict[tuple[str, ...], list[str]]] = []
    for stems in (recordings, texts):
        found.append(defaultdict(list))
        for stem in stems:
            *folders, name = stem.split("/")
            found[-1][(*(folder for folder in folders if not is_kind(folder)), name)].append(stem)
    sounds, written = found
    pairs = ((sounds[key], written[key]) for key in sounds.keys() & written.keys())
    return {ours[0]: theirs[0] for ours, theirs in pairs if len(ours) == len(theirs) == 1}


@dataclass
class Listed:
    """What a list says."""

    texts: dict[str, str] = field(default_factory=dict)
    """By the paths of recordings, without suffixes."""
    problems: list[tuple[str, tuple[str, str]]] = field(default_factory=list)
    """Lines that are of no recording, and why."""


def listed_in(path: Path, recordings: Iterable[str]) -> Listed | None:
    """The lines of a text as names of recordings at or below its folder, each with what is said; None for another text.

    As LibriSpeech (``name text``), MLS (a tab) and LJSpeech (``|``) have it. Most lines must name a recording.

    Args:
        path: of the text.
        recordings: paths without suffixes of those that have no text of their own.
    """
    inside = unicodedata.normalize("NFC", f"{path.parent}/")
    by_name: dict[str, list[str]] = defaultdict(list)
    for stem in recordings:
        if stem.startswith(inside):
            by_name[stem.rpartition("/")[2]].append(stem)
    try:
        lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    except DataError:
        return None
    for mark, most in (("\t", 1), ("|", -1), (None, 1)):
        fields = [(number, [part.strip() for part in line.split(mark, most)]) for number, line in lines]
        if 2 * sum(_name(parts[0]) in by_name for _, parts in fields) > len(lines):
            return _listed(path.name, fields, by_name)
    return None


def _name(written: str) -> str:
    name = unicodedata.normalize("NFC", written.replace("\\", "/").rpartition("/")[2])
    return Path(name).stem if name.lower().endswith(AUDIO_SUFFIXES) else name


def _listed(list_name: str, fields: list[tuple[int, list[str]]], by_name: dict[str, list[str]]) -> Listed:
    found = Listed()
    for number, parts in fields:
        where, meant = f"{list_name}, line {number}", by_name.get(_name(parts[0]), [])
        if len(meant) != 1:
            count = "several recordings are" if meant else "no recording without a text of its own is"
            found.problems.append((where, ("no recording", f"{count} called {parts[0][:80]!r}")))
        elif "\t" in parts[-1]:
            found.problems.append((where, ("malformed line", "more than a name and a text: make it a .tsv")))
        elif meant[0] in found.texts:
            found.problems.append((where, ("listed twice", f"{parts[0][:80]!r} was listed before")))
        else:
            found.texts[meant[0]] = (
                parts[-1] or parts[1] if len(parts) > 1 else ""
            )  # the last is the text as it is read
    return found
