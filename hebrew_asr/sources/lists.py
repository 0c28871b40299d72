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
from hebrew_asr.text.reading import read_text

_HEBREW = r"(?:he|iw|heb|he[-_]il|hebrew)"
_KINDS = re.compile(
    r"(?:audios?|wavs?\d*|flacs?|mp3s?|clips?|recordings?|sounds?|txts?|texts?|transcripts?|transcriptions?|labels?"
    r"|labs?|srts?|vtts?|subs|subtitles|captions|textgrids?|הקלטות|אודיו|תמלולים|תמלול|טקסט)"
    rf"(?:[ ._-]{_HEBREW})?|{_HEBREW}|עברית",
    re.I,
)
_LANGUAGE = re.compile(rf"[._-]{_HEBREW}(?:-orig)?$", re.I)


def without_language(stem: str) -> str:
    """A path without suffix, and without the tag that says that it is Hebrew: ``a.he``, ``a_heb``."""
    return _LANGUAGE.sub("", stem)


def is_kind(folder: str) -> bool:
    """Whether a folder is called after what kind of files it holds."""
    return _KINDS.fullmatch(folder) is not None


def across_folders(recordings: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Recordings and texts, as paths without suffixes, that differ in folders of kinds (``wav/a``, ``txt/a``), in the
    tag of their language or in case.

    Where several could be meant, none is.
    """
    found: list[dict[tuple[str, ...], list[str]]] = []
    for stems in (recordings, texts):
        found.append(defaultdict(list))
        for stem in stems:
            *folders, name = without_language(stem).split("/")
            found[-1][(*(folder for folder in folders if not is_kind(folder)), name.casefold())].append(stem)
    sounds, written = found
    pairs = ((sounds[key], written[key]) for key in sounds.keys() & written.keys())
    return {ours[0]: theirs[0] for ours, theirs in pairs if len(ours) == len(theirs) == 1}


@dataclass
class Listed:
    """What lists say."""

    texts: dict[str, str] = field(default_factory=dict)
    """By the paths of recordings, without suffixes."""
    problems: list[tuple[Path, int, tuple[str, str], str]] = field(default_factory=list)
    """Lists and lines that give no text, why, and of which recording they are; nothing where of none."""


def by_name(recordings: Iterable[str]) -> dict[str, list[str]]:
    """Paths without suffixes by their last parts."""
    found: dict[str, list[str]] = defaultdict(list)
    for stem in recordings:
        found[stem.rpartition("/")[2]].append(stem)
    return found


def read_list(path: Path, recordings: dict[str, list[str]], found: Listed) -> bool:
    """Take the lines of a text as names of recordings at or below its folder, each with what is said.

    As LibriSpeech (``name text``), MLS (a tab) and LJSpeech (``|``) have it. Most lines must name a recording.

    Args:
        path: of the text.
        recordings: those that have no text of their own, by their names.
        found: what is found is added to it.

    Returns:
        Whether it is such a list.
    """
    try:
        lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    except DataError:
        return False
    for mark, most in (("\t", 1), ("|", -1), (None, 1)):
        fields = [(number, [part.strip() for part in line.split(mark, most)]) for number, line in lines]
        if 2 * sum(_name(parts[0]) in recordings for _, parts in fields) > len(lines):
            inside = unicodedata.normalize("NFC", f"{path.parent}/")
            for number, parts in fields:
                meant = [stem for stem in recordings.get(_name(parts[0]), ()) if stem.startswith(inside)]
                if problem := _problem(parts, meant, found):
                    found.problems.append((path, number, problem, meant[0] if len(meant) == 1 else ""))
                else:  # the last one is the text as it is read
                    found.texts[meant[0]] = parts[-1] or parts[1] if parts[1:] else ""
            return True
    return False


def _name(written: str) -> str:
    name = unicodedata.normalize("NFC", written.replace("\\", "/").rpartition("/")[2])
    return Path(name).stem if name.lower().endswith(AUDIO_SUFFIXES) else name


def _problem(parts: list[str], meant: list[str], found: Listed) -> tuple[str, str] | None:
    name = f"{parts[0][:80]!r}"
    if len(meant) != 1:
        count = "several recordings are" if meant else "no recording without a text of its own is"
        return "no recording", f"{count} called {name}"
    if "\t" in parts[-1]:
        return "malformed line", "more than a name and a text: make it a .tsv"
    return ("listed twice", f"{name} was listed before") if meant[0] in found.texts else None
