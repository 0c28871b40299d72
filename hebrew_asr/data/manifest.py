"""The JSONL manifest: what preparation writes and training reads.

One clip a line, in the schema of the official Qwen3-ASR fine-tuning script (``audio``, ``text``) plus our own fields::

    {"audio": "clips/0001.flac", "text": "language Hebrew<asr_text>שלום", "id": "…", "duration_s": 1.5, "group": "…"}

UTF-8, with or without a byte order mark. A manifest is a file of somebody's: every line is checked, and what is wrong
is told with its number.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hebrew_asr.errors import DataError
from hebrew_asr.files import write_atomically
from hebrew_asr.text.prompt import find_marker, parse_target

_MAX_LINE_BYTES = 1 << 20
_MAX_S = 1_000_000
_MAX_TOLD = 5
_MAX_SHOWN = 300  # characters of a value, in a message
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"\0\0\0{", b"\0\0\xfe\xff")
"""What a manifest starts with in UTF-16 or UTF-32, with and without a byte order mark."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance."""

    audio: str
    """Path of the audio file; relative paths start at the manifest's folder."""
    text: str
    """Target in the official form, ``language Hebrew<asr_text>{transcript}``."""
    id: str
    """Unique in the manifest; seeds the clip's augmentation."""
    duration_s: float
    """Length of the decoded audio in seconds."""
    group: str = ""
    """Speaker, session or source; the split never puts one group on both sides."""

    @property
    def transcript(self) -> str:
        """The text without its ``language …<asr_text>`` prefix."""
        return parse_target(self.text)[1]


def read_manifest(path: str | Path, *, check_audio: bool = True, allow_outside: bool = False) -> list[Clip]:
    """Read a manifest; audio paths come back absolute.

    A missing ``id`` becomes the path and the line's number, a missing ``duration_s`` is read from the file's header.

    Args:
        path: the ``.jsonl`` file.
        check_audio: also require every audio file to exist.
        allow_outside: accept audio files outside the manifest's folder. Without it a path is refused if it is absolute
            or goes upwards, and its file lies elsewhere once symbolic links are followed. A path below the folder may
            lead through links, as all files of the hub's cache do: whoever has the folder put them there.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or some lines are wrong (the first five are named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"manifest not found: {path}. Prepare one with `hebrew-asr prepare`, or give --data another folder"
        )
    with _no_garbage_collection():
        clips, problems = _read(path, _Locator(path.parent, check_audio, allow_outside))
    if problems:
        more = f" (and {len(problems) - _MAX_TOLD} more)" if len(problems) > _MAX_TOLD else ""
        raise DataError(f"manifest {path}: {'; '.join(problems[:_MAX_TOLD])}{more}")
    if not clips:
        raise DataError(f"manifest {path} holds no clips")
    return clips


def _read(path: Path, locate: _Locator) -> tuple[list[Clip], list[str]]:
    """The clips, and what is wrong with the lines that are none."""
    clips: list[Clip] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            clip = _clip_of(line, number, locate)
            if clip.id in seen:
                raise ValueError(f"id {_short(repr(clip.id))} occurs twice")
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
            continue
        seen.add(clip.id)
        clips.append(clip)
    return clips, problems


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Clips stay: looking through hundreds of thousands of them for garbage takes an eighth of the time of reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank."""
    number = 0
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
            if head.startswith(_WIDE):
                raise DataError(
                    f"manifest {path} seems to be UTF-16 or UTF-32; save it as UTF-8, for example with "
                    "`iconv -f UTF-16 -t UTF-8`"
                )
            stream.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
            for number, raw in enumerate(iter(partial(stream.readline, _MAX_LINE_BYTES + 1), b""), 1):
                if len(raw) > _MAX_LINE_BYTES:
                    raise DataError(f"manifest {path}: line {number} is longer than 1 MiB; is it JSON Lines?")
                line = raw.strip().decode()
                if line:
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(
            f"manifest {path}: line {number} is not UTF-8 (byte {error.object[error.start]:#04x}); convert the file, "
            "if it is Hebrew from Windows with `iconv -f CP1255 -t UTF-8`"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read manifest {path}: {error.strerror}") from error


def _clip_of(line: str, number: int, locate: _Locator) -> Clip:
    """Raises ValueError or RecursionError with what is wrong."""
    try:
        row, end = _DECODER.raw_decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if end < len(line):
        raise ValueError(f"not one JSON object: more follows at column {end + 1}")
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    written, text = row.get("audio"), row.get("text")
    if not (isinstance(written, str) and isinstance(text, str)):
        missing = [key for key in ("audio", "text") if not isinstance(row.get(key), str)]
        raise ValueError(f"no {' and no '.join(missing)}")
    if not parse_target(text)[1].strip():
        raise ValueError("the transcript is empty")
    marker = find_marker(text)
    if marker:
        raise ValueError(f"the text contains {_short(marker)}, which the model takes for a control token; remove it")
    audio = locate(written)
    identity = _name(row, "id") or f"{written.encode(errors='backslashreplace').decode()}#{number}"
    group = _name(row, "group")
    if "\\ud" in line or "\\uD" in line:  # only an escape can have made one
        for key, value in (("text", text), ("id", identity), ("group", group)):
            if _LONE_SURROGATE.search(value):
                raise ValueError(f"the {key} holds half a surrogate pair, which is no character")
    duration_s = row.get("duration_s")
    if duration_s is None:
        duration_s = _duration_of(audio)
    return Clip(audio, text, identity, _seconds(duration_s), group)


def _name(row: dict[str, Any], key: str) -> str:
    """A string; a whole number stands for its digits, and what is missing for nothing."""
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{key} is {_short(repr(value))}, not a string")


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_S:
        return float(value)
    raise ValueError(f"duration_s is {_short(repr(value))}, not a number of seconds above 0 and up to {_MAX_S:,}")


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {_short(repr(twice))} occurs twice")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _goes_down(written: str) -> bool:
    """Whether a path stays below the folder that it starts at, but for the links on its way."""
    return written[:1] != "/" and ".." not in written.split("/")


class _Locator:
    """Finds audio files by listing each folder once: asking for each file takes several times as long."""

    def __init__(self, folder: Path, check_audio: bool, allow_outside: bool):
        self._folder = os.path.realpath(folder)
        self._check_audio, self._allow_outside = check_audio, allow_outside
        self._places: dict[str, _Place] = {}

    def __call__(self, written: str) -> str:
        """The absolute path of an audio file that the manifest names ``written``.

        Raises:
            ValueError: it leaves the folder, or is not there.
        """
        cut = written.rfind("/") + 1
        head, name = written[:cut], written[cut:]
        place = self._places.get(head) or self._look_into(head)
        audio = place.prefix + name
        if name in place.files:
            return audio
        is_inside = place.is_inside
        if name in ("", ".", "..") or os.path.islink(audio):  # noqa: PTH114 (Path's raises for a name that is too long)
            audio = os.path.realpath(audio)
            is_inside = _goes_down(written) or self._contains(audio)
        if not (is_inside or self._allow_outside):
            raise ValueError(
                f"audio path {_short(repr(written))} leaves the manifest's folder; if it may, set "
                "data.allow_outside=true in the recipe (--set), or give --allow-outside to eval"
            )
        if self._check_audio and not os.path.isfile(audio):  # noqa: PTH113
            raise ValueError(f"audio file not found: {_short(audio)}")
        return audio

    def _look_into(self, head: str) -> _Place:
        folder = os.path.realpath(f"{self._folder}/{head}" if head[:1] != "/" else head)
        is_inside = _goes_down(head) or self._contains(folder)
        files: frozenset[str] = frozenset()
        if is_inside or self._allow_outside:
            try:
                with os.scandir(folder) as entries:
                    files = frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            except OSError:  # not there, or may not be listed: then each file is looked at
                pass
        place = self._places[head] = _Place(folder.rstrip("/") + "/", is_inside, files)
        return place

    def _contains(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._folder.rstrip('/')}/")


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder that holds audio."""

    prefix: str
    """Its real path, with a slash at the end."""
    is_inside: bool
    """Whether it is the manifest's folder or below it."""
    files: frozenset[str]
    """Names of its plain files: nothing need be asked about these. Symbolic links are not among them."""


def _duration_of(audio: str) -> float:
    """Manifests of the official script carry no duration."""
    from hebrew_asr.audio.decode import duration_s
    from hebrew_asr.audio.source import AudioError

    try:
        return duration_s(audio)
    except AudioError as error:
        raise ValueError(f"cannot use audio {_short(audio)}: {error.cause}") from error


def fingerprint(clips: Iterable[Clip]) -> str:
    """Of what the order and the content of training follow from: ids, durations and texts, not where files lie."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.id}\t{clip.duration_s!r}\t{clip.text}\n".encode())
    return digest.hexdigest()


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest atomically; audio paths inside its folder become relative to it."""
    path = Path(path)
    folder = path.parent.resolve()
    rows = []
    for clip in clips:
        audio = Path(clip.audio)
        if audio.is_absolute() and audio.is_relative_to(folder):
            clip = replace(clip, audio=str(audio.relative_to(folder)))
        rows.append(json.dumps(asdict(clip), ensure_ascii=False))
    write_atomically(path, "".join(f"{row}\n" for row in rows))
