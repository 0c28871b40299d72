"""The JSONL manifest: what preparation writes and training reads.

One clip a line, in the schema of the official Qwen3-ASR fine-tuning script (``audio``, ``text``) plus our own fields::

    {"audio": "clips/0001.flac", "text": "language Hebrew<asr_text>שלום", "id": "…", "duration_s": 1.5, "group": "…"}

UTF-8, or UTF-16 or UTF-32 with a byte order mark. A manifest is a file of somebody's: every line is checked, and what
is wrong is told with its number.
"""

from __future__ import annotations

import gc
import io
import json
import math
import re
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow

from hebrew_asr.audio.source import Part
from hebrew_asr.data.clips import COLUMNS, Clip, Clips, Columns, array_of, values_of
from hebrew_asr.data.locate import locate
from hebrew_asr.data.mapped import NotBelieved, is_mapped, mapped_path, open_mapped, write_mapped
from hebrew_asr.errors import DataError, UsageError, shortened
from hebrew_asr.fallbacks import note_fallback
from hebrew_asr.files import write_lines, xxh3_of
from hebrew_asr.remote.joined import refuse_changed
from hebrew_asr.text.prompt import find_marker, parse_target
from hebrew_asr.text.reading import encoding_of

_MAX_LINE_BYTES = 1 << 20
_MAX_S = 1_000_000
_MAX_TOLD = 5
_WIDE = (b"{\0", b"\0{", b"\0\0\0{")
"""What a manifest starts with in UTF-16 or UTF-32 without a byte order mark."""
_FIELDS = [field.name for field in fields(Clip)]
_FIELDS_OF_FILES = [name for name in _FIELDS if name not in ("offset_bytes", "size_bytes")]
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_manifest(path: str | Path, *, check_audio: bool = True, allow_outside: bool = False) -> list[Clip]:
    """All clips of :func:`open_manifest`, which says what the arguments are, as objects: for some thousands of them."""
    with _no_garbage_collection():
        return list(open_manifest(path, check_audio=check_audio, allow_outside=allow_outside))


def open_manifest(path: str | Path, *, check_audio: bool = True, allow_outside: bool = False) -> Clips:
    """Open a manifest; audio paths come back absolute.

    ``train.jsonl`` stands for the Arrow file ``train.arrow`` beside it too, which is mapped instead of read, if it was
    made of exactly this text. There may be the Arrow file alone. In a line of text, a missing ``id`` becomes the path
    and the line's number, and a missing ``duration_s`` is read from the audio's header.

    Args:
        path: the ``.jsonl`` or ``.arrow`` file.
        check_audio: also require every audio file to exist, and sets that were joined to be as they were then.
        allow_outside: accept audio files outside the manifest's folder. Without it a path is refused if it is absolute
            or goes upwards, and its file lies elsewhere once symbolic links are followed. A path below the folder may
            lead through links, as all files of the hub's cache do: whoever has the folder put them there.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or some lines are wrong (the first five are named); or an
            Arrow file that stands alone, or is named itself, is not whole; or a set that was joined has changed.
        EnvironmentProblem: the server of a set that was joined does not answer.
    """
    path = Path(path)
    if check_audio:
        refuse_changed(path)
    mapped = _open_mapped(path)
    if mapped is None:
        return read_lines(path, check_audio=check_audio, allow_outside=allow_outside)
    batch, fingerprint = mapped
    folders, misplaced = locate(batch, path.parent, check_audio=check_audio, allow_outside=allow_outside)
    _refuse(mapped_path(path), {row + 1: problem for row, problem in misplaced.items()}, "clip")
    return Clips(batch, folders, known=fingerprint)


def has_manifest(path: Path) -> bool:
    """Whether :func:`open_manifest` would find something at ``path``."""
    return path.is_file() or mapped_path(path).is_file()


def holds_clips(path: Path) -> bool:
    """Whether there is anything in a manifest: ``prepare`` without an evaluation share writes an empty one."""
    return path.stat().st_size > 0 if path.is_file() else has_manifest(path)


def _open_mapped(path: Path) -> tuple[pyarrow.RecordBatch, str] | None:
    """Columns and fingerprint of the Arrow file of a manifest; None where its text is to be read instead."""
    mapped, text = mapped_path(path), path.with_suffix(".jsonl")
    if not mapped.is_file():
        return None
    try:
        return open_mapped(mapped, text if text.is_file() else None)
    except NotBelieved as error:
        if path == mapped or not path.is_file():
            raise DataError(f"{mapped} {error}; make it anew from its JSON lines with `hebrew-asr index`") from error
        name = f"reading {path} line by line, which takes some 20 times as long as mapping {mapped.name}"
        note_fallback(name, f"{mapped.name} {error}. `hebrew-asr index {path}` makes it anew")
        return None


def read_lines(path: Path, *, check_audio: bool, allow_outside: bool, scratch: Path | None = None) -> Clips:
    """The clips of a text manifest, whatever lies beside it.

    Their columns lie in memory, or, in a folder ``scratch``, in mapped files that have no name.
    """
    if not path.is_file():
        raise DataError(f"manifest not found: {path}. Prepare one with `hebrew-asr prepare`, or give another folder")
    with _no_garbage_collection():
        batch, numbers, problems = _read(path, scratch)
    folders, misplaced = locate(batch, path.parent, check_audio=check_audio, allow_outside=allow_outside)
    problems |= {numbers[row]: problem for row, problem in misplaced.items()}
    batch, unmeasured = _with_durations(batch, folders, misplaced)
    _refuse(path, problems | {numbers[row]: problem for row, problem in unmeasured.items()})
    if not batch.num_rows:
        raise DataError(f"manifest {path} holds no clips")
    return Clips(batch, folders)


def _refuse(path: Path, problems: dict[int, str], unit: str = "line") -> None:
    if problems:
        listed = "; ".join(f"{unit} {number}: {problems[number]}" for number in sorted(problems)[:_MAX_TOLD])
        more = f" (and {len(problems) - _MAX_TOLD} more)" if len(problems) > _MAX_TOLD else ""
        raise DataError(f"manifest {path}: {listed}{more}")


def _read(path: Path, scratch: Path | None) -> tuple[pyarrow.RecordBatch, Sequence[int], dict[int, str]]:
    """The clips, a duration of NaN where none is stated; the line of each; and what is wrong with other lines."""
    numbers, problems = array("q"), dict[int, str]()
    with ExitStack() as files:
        columns = Columns() if scratch is None else Columns(lambda: files.enter_context(TemporaryFile(dir=scratch)))
        for number, line in _lines(path):
            try:
                columns.add(*_values_of(line, number))
            except (ValueError, RecursionError) as error:
                problems[number] = str(error)
                continue
            numbers.append(number)
        batch = columns.batch()
    if len(batch["id"].unique()) < batch.num_rows:
        seen: set[str] = set()
        for number, identity in zip(numbers, batch["id"].to_pylist(), strict=True):
            if identity in seen:
                problems[number] = f"id {shortened(repr(identity))} occurs twice"
            seen.add(identity)
    return batch, numbers, problems


def _with_durations(
    batch: pyarrow.RecordBatch, folders: list[str], misplaced: Container[int]
) -> tuple[pyarrow.RecordBatch, dict[int, str]]:
    """Clips with the durations that the headers of their files state, and by row why there is none."""
    durations_s, problems = values_of(batch["duration_s"]), {}
    missing = [row for row in np.flatnonzero(np.isnan(durations_s)).tolist() if row not in misplaced]
    if not missing:
        return batch, problems
    durations_s, clips = durations_s.copy(), Clips(batch, folders)
    for row in missing:
        try:
            durations_s[row] = _seconds(_duration_of(clips[row].sound))
        except ValueError as error:
            problems[row] = str(error)
    measured = array_of(durations_s, pyarrow.float64())
    return batch.set_column(COLUMNS.get_field_index("duration_s"), "duration_s", measured), problems


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
                    f"manifest {path} seems to be UTF-16 or UTF-32 without a byte order mark; save it as UTF-8, for "
                    "example with `iconv -f UTF-16LE -t UTF-8`"
                )
            encoding = encoding_of(head)
            stream.seek(3 if encoding == "utf-8-sig" else 0)
            wide = None if encoding.startswith("utf-8") else io.TextIOWrapper(stream, encoding, newline="\n")
            readline = stream.readline if wide is None else (lambda limit: wide.readline(limit).encode())
            for number, raw in enumerate(iter(partial(readline, _MAX_LINE_BYTES + 1), b""), 1):
                if len(raw) > _MAX_LINE_BYTES:
                    raise DataError(f"manifest {path}: line {number} is longer than 1 MiB; is it JSON Lines?")
                line = raw.strip().decode()
                if line:
                    yield number, line
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise DataError(f"manifest {path} is damaged after line {number}: not {error.encoding.upper()}") from error
        raise DataError(
            f"manifest {path}: line {number} is not UTF-8 (byte {error.object[error.start]:#04x}); convert the file, "
            "if it is Hebrew from Windows with `iconv -f CP1255 -t UTF-8`"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read manifest {path}: {error.strerror}") from error


def _values_of(line: str, number: int) -> tuple[str, str, str, float, str, int, int]:
    """The values of a clip: audio as it is written, and a duration of NaN if none is stated.

    Raises:
        ValueError, RecursionError: with what is wrong.
    """
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
        raise ValueError("the transcript is empty; leave the clip out (eval --set and score take such clips)")
    marker = find_marker(text)
    if marker:
        raise ValueError(f"the text contains {shortened(marker)}, which the model takes for a control token; remove it")
    identity = _name(row, "id") or f"{written.encode(errors='backslashreplace').decode()}#{number}"
    group = _name(row, "group")
    if "\\ud" in line or "\\uD" in line:  # only an escape can have made one
        for key, value in (("text", text), ("id", identity), ("group", group)):
            if _LONE_SURROGATE.search(value):
                raise ValueError(f"the {key} holds half a surrogate pair, which is no character")
    duration_s = row.get("duration_s")
    return written, text, identity, math.nan if duration_s is None else _seconds(duration_s), group, *_stretch(row)


def _name(row: dict[str, Any], key: str) -> str:
    """A string; a whole number stands for its digits, and what is missing for nothing."""
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{key} is {shortened(repr(value))}, not a string")


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_S:
        return float(value)
    raise ValueError(f"duration_s is {shortened(repr(value))}, not a number of seconds above 0 and up to {_MAX_S:,}")


def _stretch(row: dict[str, Any]) -> tuple[int, int]:
    """Where in its file a recording lies, and how long it is there."""
    first, size = row.get("offset_bytes", 0), row.get("size_bytes", 0)
    if any(type(value) is not int or not 0 <= value < 1 << 62 for value in (first, size)) or (first and not size):
        shown = shortened(f"{first!r} and {size!r}")
        raise ValueError(f"offset_bytes and size_bytes are {shown}, not a stretch of a file")
    return first, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {shortened(repr(twice))} occurs twice")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _duration_of(audio: str | Part) -> float:
    """Manifests of the official script carry no duration."""
    from hebrew_asr.audio.decode import duration_s
    from hebrew_asr.audio.source import AudioError

    try:
        return duration_s(audio)
    except AudioError as error:
        raise ValueError(f"cannot use audio {shortened(str(audio))}: {error.cause}") from error


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest atomically; audio paths inside its folder become relative to it."""
    path = Path(path)
    folder = path.parent.resolve()

    def placed(clip: Clip) -> Clip:
        audio = Path(clip.audio)
        inside = audio.is_absolute() and audio.is_relative_to(folder)
        return replace(clip, audio=str(audio.relative_to(folder))) if inside else clip

    write_lines(path, (row_of(placed(clip)) for clip in clips))


def row_of(clip: Clip) -> dict[str, Any]:
    """A clip as a line of a manifest has it."""
    return {name: getattr(clip, name) for name in (_FIELDS if clip.size_bytes else _FIELDS_OF_FILES)}


def index_manifest(path: str | Path) -> Path:
    """Write the Arrow file of a text manifest beside it, for :func:`open_manifest` to map; returns its path.

    Raises:
        DataError: some lines are wrong, or the manifest changed meanwhile.
        UsageError: there is a file of that name that is not of this making.
    """
    path = Path(path)
    mapped = mapped_path(path)
    if mapped == path:
        raise UsageError(f"{path} is an Arrow file already: name the JSON lines that it is to be made of")
    if mapped.exists() and not is_mapped(mapped):
        raise UsageError(f"{mapped} was not written by this command: move it, it would be overwritten")
    before = xxh3_of(path) if path.is_file() else ""
    clips = read_lines(path, check_audio=False, allow_outside=True, scratch=path.parent)
    if xxh3_of(path) != before:
        raise DataError(f"manifest {path} changed while it was read: somebody writes to it; try again")
    write_mapped(mapped, clips, before)
    return mapped
