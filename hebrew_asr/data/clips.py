"""The clips of a manifest, in columns: a clip is made when it is asked for.

Millions of Python objects would take gigabytes in every rank, and their reference counts would copy them into every
loader process. Columns lie in Arrow buffers: in a mapped file (:mod:`hebrew_asr.data.mapped`) the ranks of a machine
share them.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from operator import attrgetter
from typing import IO, Any, overload

import numpy as np
import pyarrow
import pyarrow.compute

from hebrew_asr.audio.source import AudioError, Part
from hebrew_asr.errors import DataError
from hebrew_asr.remote.cache import read_stretch
from hebrew_asr.remote.paths import is_url
from hebrew_asr.text.prompt import parse_target

_CLIPS_AT_ONCE = 4096

compute: Any = pyarrow.compute
"""Its functions are made when it is imported: no type checker sees them."""

COLUMNS = pyarrow.schema(
    {
        "folder": pyarrow.dictionary(pyarrow.int32(), pyarrow.large_binary()),
        "name": pyarrow.large_binary(),
        "text": pyarrow.large_string(),
        "id": pyarrow.large_string(),
        "duration_s": pyarrow.float64(),
        "group": pyarrow.large_string(),
        "offset_bytes": pyarrow.int64(),
        "size_bytes": pyarrow.int64(),
    }
)
"""A clip's audio path is folder and name end to end: a folder ends in a slash, or is empty. They are bytes since a file
name need not be UTF-8 (:func:`path_bytes`)."""
_TYPES = [pyarrow.int32(), *COLUMNS.types[1:]]
NEW_WORDS = pyarrow.field("new_words", pyarrow.list_(pyarrow.large_string()))
"""One more column of a mapped file: some words of each text, all together each word of all texts once
(:func:`hebrew_asr.data.vocabulary.new_words`)."""


@dataclass(frozen=True, slots=True)
class PartElsewhere(Part):
    """A recording at a URL; 0 bytes are all of the file."""

    def __str__(self) -> str:
        return super(PartElsewhere, self).__str__() if self.size_bytes else self.path

    def read(self, label: str) -> bytes:
        """As :meth:`Part.read`; raises EnvironmentProblem where its server does not answer."""
        try:
            return read_stretch(self.path, self.offset_bytes, self.size_bytes)
        except DataError as error:
            raise AudioError(label, str(error)) from error


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance."""

    audio: str
    """Path or URL of the audio file; relative paths start at the manifest's folder."""
    text: str
    """Target in the official form, ``language Hebrew<asr_text>{transcript}``."""
    id: str
    """Unique in the manifest; seeds the clip's augmentation."""
    duration_s: float
    """Length of the decoded audio in seconds."""
    group: str = ""
    """Speaker, session or source; the split never puts one group on both sides."""
    offset_bytes: int = 0
    """Where the recording begins in ``audio``, if that is a shard of many."""
    size_bytes: int = 0
    """How long it is there; 0 where the whole file is the recording."""

    @property
    def sound(self) -> str | Part:
        """What :func:`hebrew_asr.audio.decode.decode` takes."""
        place = (self.audio, self.offset_bytes, self.size_bytes)
        return PartElsewhere(*place) if is_url(self.audio) else Part(*place) if self.size_bytes else self.audio

    @property
    def own_file(self) -> str:
        """Path of its audio file; '' where it lies in a shard with others, or elsewhere."""
        return self.sound if isinstance(self.sound, str) else ""

    @property
    def transcript(self) -> str:
        """The text without its ``language …<asr_text>`` prefix."""
        return parse_target(self.text)[1]


class Clips(Sequence[Clip]):
    """Clips in the order of their manifest. A slice shares the columns; ``list`` makes all of them at once."""

    def __init__(
        self, batch: pyarrow.RecordBatch, folders: Sequence[str], rows: range | None = None, known: str | None = None
    ):
        """Clips over columns.

        Args:
            batch: of the schema ``COLUMNS``; ``NEW_WORDS`` may follow.
            folders: for each entry of the dictionary of ``folder``, where it lies.
            rows: those that count; all of them by default.
            known: the fingerprint, where it is known.
        """
        self.batch = batch
        self.folders, self._rows, self._known = folders, range(batch.num_rows) if rows is None else rows, known
        self._folder, self._name, *self._others = batch.columns[: len(COLUMNS)]

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> Clips:
        """Clips that somebody holds, in columns."""
        if isinstance(clips, Clips):
            return clips
        builder, values = Columns(), attrgetter(*Clip.__slots__)  # astuple copies each value as it would copy a tree
        for clip in clips:
            builder.add(*values(clip))
        batch = builder.batch()
        return cls(batch, [as_path(folder) for folder in batch["folder"].dictionary.to_pylist()])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Clips: ...
    def __getitem__(self, index: int | slice) -> Clip | Clips:
        if isinstance(index, slice):
            return Clips(self.batch, self.folders, self._rows[index])
        row = self._rows[index]
        return Clip(
            self.folders[self._folder.indices[row].as_py()] + as_path(self._name[row].as_py()),
            *(column[row].as_py() for column in self._others),
        )

    def __iter__(self) -> Iterator[Clip]:
        for part in self.parts(_CLIPS_AT_ONCE):
            codes = part.column("folder").indices.to_pylist()
            others = (part.column(name).to_pylist() for name in COLUMNS.names[1:])
            for code, name, *values in zip(codes, *others, strict=True):
                yield Clip(self.folders[code] + as_path(name), *values)

    def parts(self, size: int) -> Iterator[Clips]:
        """All of them, ``size`` at a time."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def column(self, name: str) -> pyarrow.Array:
        """A column of these rows; neighboring rows are not copied."""
        column, rows = self.batch[name], self._rows
        if rows.step == 1:
            return column.slice(rows.start, len(rows))
        return column.take(array_of(np.arange(rows.start, rows.stop, rows.step), pyarrow.int64()))

    @property
    def words(self) -> pyarrow.Array | None:
        """Each word of all texts once; None where they are not known, as of a part of the clips."""
        is_known = NEW_WORDS.name in self.batch.schema.names and self._rows == range(self.batch.num_rows)
        return self.batch[NEW_WORDS.name].flatten() if is_known else None

    @property
    def durations_s(self) -> np.ndarray:
        """(clips,) float64, read-only: a view of the column where the rows are neighbors."""
        return values_of(self.column("duration_s"))

    @cached_property
    def fingerprint(self) -> str:
        """Of what the order and the content of training follow from: ids, durations and texts, not where files lie."""
        if self._known is not None:
            return self._known
        digest = hashlib.sha256()
        for part in self.parts(_CLIPS_AT_ONCE):
            rows = zip(*(part.column(name).to_pylist() for name in ("id", "duration_s", "text")), strict=True)
            digest.update("".join(f"{identity}\t{seconds!r}\t{text}\n" for identity, seconds, text in rows).encode())
        return digest.hexdigest()


class Columns:
    """Collects clips into columns, a few thousand at a time."""

    def __init__(self, new_stream: Callable[[], IO[bytes]] = BytesIO) -> None:
        """Empty. What ``new_stream`` makes holds their content: memory, or temporary files, which are mapped."""
        self._codes: dict[str, int] = {}
        self._rows, self._lists = 0, [list[Any]() for _ in COLUMNS]
        self._streams = [[new_stream() for _ in pyarrow.nulls(0, kind).buffers()[1:]] for kind in _TYPES]
        """Of each column the bounds of its values, unless these are numbers, and the values."""

    def add(self, audio: str, *others: Any) -> None:
        """One more clip, by the values of ``Clip`` in its order; they are not checked."""
        cut = audio.rfind("/") + 1
        code = self._codes.setdefault(audio[:cut], len(self._codes))
        for held, value in zip(self._lists, (code, path_bytes(audio[cut:]), *others), strict=True):
            held.append(value)
        if len(self._lists[0]) == _CLIPS_AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        self._rows += len(self._lists[0])
        for values, kind, (*bounds, content) in zip(self._lists, _TYPES, self._streams, strict=True):
            _, *own_bounds, own = array_of(values, kind).buffers()
            for stream, first_to_last in zip(bounds, own_bounds, strict=True):
                shifted = np.frombuffer(first_to_last, np.int64) + content.tell()
                stream.write(shifted[1 if stream.tell() else 0 :].data)
            content.write(own)
            values.clear()

    def batch(self) -> pyarrow.RecordBatch:
        """All clips, of the schema ``COLUMNS``."""
        self._settle()
        content = [[None, *map(_content_of, streams)] for streams in self._streams]
        rows = [self._rows] * len(content)
        codes, *others = map(pyarrow.Array.from_buffers, _TYPES, rows, content)
        folders = array_of([path_bytes(folder) for folder in self._codes], pyarrow.large_binary())
        return pyarrow.record_batch([pyarrow.DictionaryArray.from_arrays(codes, folders), *others], schema=COLUMNS)


def _content_of(stream: IO[bytes]) -> pyarrow.Buffer:
    """All that was written to a stream, which is not copied; a file may be closed then."""
    if isinstance(stream, BytesIO):
        return pyarrow.py_buffer(stream.getbuffer())
    stream.flush()
    size = stream.tell()  # nothing cannot be mapped
    return pyarrow.py_buffer(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else b"")


def array_of(values: Sequence[Any] | np.ndarray, kind: pyarrow.DataType) -> pyarrow.Array:
    """A column of numbers, bools, large strings or binaries, or lists of such, none of them null.

    pyarrow imports pandas, which takes 0.3 s of processor time, at the first value of Python's that it is given, by
    ``pyarrow.array`` or to compute with, and at ``to_numpy``, ``group_by`` and ``empty_table``.
    """
    if pyarrow.types.is_list(kind):
        bounds = np.zeros(len(values) + 1, np.int32)
        np.cumsum([len(own) for own in values], out=bounds[1:])
        held = array_of([value for own in values for value in own], kind.value_type)
        return pyarrow.ListArray.from_arrays(array_of(bounds, pyarrow.int32()), held)
    if pyarrow.types.is_boolean(kind):
        content = [np.packbits(np.asarray(values, bool), bitorder="little")]
    elif pyarrow.types.is_primitive(kind):
        content = [np.ascontiguousarray(values, kind.to_pandas_dtype())]
    else:
        held = [value.encode() if isinstance(value, str) else value for value in values]
        bounds = np.zeros(len(held) + 1, np.int64)
        np.cumsum([len(value) for value in held], out=bounds[1:])
        content = [bounds, b"".join(held)]
    return pyarrow.Array.from_buffers(kind, len(values), [None, *map(pyarrow.py_buffer, content)])


def values_of(column: pyarrow.Array) -> np.ndarray:
    """(rows,) Numbers or bools of a column without nulls: a read-only view, but for bools, whose bits are unpacked."""
    if pyarrow.types.is_boolean(column.type):
        return np.from_dlpack(column.cast(pyarrow.uint8())).astype(bool)
    return np.from_dlpack(column)


def path_bytes(path: str) -> bytes:
    """A path as a column holds it: any string that JSON can hold, half a surrogate pair too."""
    return path.encode(errors="surrogatepass")


def as_path(held: bytes) -> str:
    """The path that :func:`path_bytes` was given."""
    return held.decode(errors="surrogatepass")
