"""Which file a table means by the name that it gives a recording, as people and programs write names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

from hebrew_asr.audio.source import AUDIO_SUFFIXES

_FOLDERS = ("", "clips", "wavs", "wav", "audio")
"""Where audio lies that a listing names without its folder: Common Voice, LJSpeech, and habits."""
_DIRECTION_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_SCHEME = re.compile(r"\w{2,}://[^/]*|^\$?\{\w+\}|^\$\w+")
"""Of a URL; or a variable that stands for a folder of another machine."""
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


def located(written: str, folder: Path) -> Path:
    """The file that a listing in ``folder`` means, or where it should be.

    Tried are the path itself, with Windows' backslashes turned, below the folders where clips usually lie, and with
    the suffix of audio where it has none; then the only name that differs by case or, as macOS writes them, by accents.
    Then the same without direction marks, as a URL or as seen from the folders above; of a path on another machine as
    many of its last parts as lead to a file here.
    """
    turned = written.replace("\\", "/")
    for name in chain(dict.fromkeys((written, turned)), _spellings(turned)):
        if found := _called(name, folder) or _alike(name, folder):
            return found
    return folder / turned


def forget_names() -> None:
    """Forget which names folders hold: they may hold others since."""
    _names_alike.cache_clear()
    _folders_of.cache_clear()


@lru_cache(maxsize=4)
def _folders_of(folder: Path) -> list[str]:
    """Those of a listing's that are there."""
    return [str(folder / below) for below in _FOLDERS if (folder / below).is_dir()]


def _called(name: str, folder: Path) -> Path | None:
    ends = AUDIO_SUFFIXES if Path(name).suffix.lower() not in AUDIO_SUFFIXES else ()
    for within in _folders_of(folder):
        path = os.path.join(within, name)  # noqa: PTH118 — a Path takes ten times as long, for each of many rows
        for end in ("", *ends):
            if os.path.lexists(path + end) and not os.path.isdir(path + end):  # noqa: PTH112
                return Path(path + end)
    return None


def _alike(name: str, folder: Path) -> Path | None:
    for within in _folders_of(folder):
        parent, last = os.path.split(os.path.join(within, name).rstrip("/"))  # noqa: PTH118
        is_there = os.path.isdir(parent)  # noqa: PTH112 — others would push it out of what is remembered
        if is_there and len(alike := _names_alike(Path(parent)).get(_folded(last), ())) == 1:
            return Path(parent, alike[0])
    return None


def _spellings(turned: str) -> Iterator[str]:
    """What else a name may mean, first the likeliest."""
    plain = _SCHEME.sub("", unquote(_DIRECTION_MARKS.sub("", turned))).strip()
    yield plain
    parts = plain.split("/")
    if _ABSOLUTE.match(plain):
        yield from ("/".join(parts[first:]) for first in range(1, len(parts)))
    elif len(parts) > 1:
        yield from (f"../{plain}", f"../../{plain}")


@lru_cache(maxsize=4 * len(_FOLDERS))
def _names_alike(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by their folded ones; none where it cannot be read, or is none."""
    found: dict[str, list[str]] = {}
    with suppress(OSError, ValueError):
        for path in folder.iterdir():
            found.setdefault(_folded(path.name), []).append(path.name)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
