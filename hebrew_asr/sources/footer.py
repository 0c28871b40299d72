"""The footer of a parquet file, a few row groups at a time.

pyarrow reads a footer whole, and takes 25 kB of memory for each row group of a file of 24 columns: 1.2 GiB where each
of 50,000 rows is a group of its own. So the footer is walked here and not kept, and pyarrow is given one that names
the wanted row groups only. A footer is one struct, ``FileMetaData`` of parquet.thrift, in Thrift's compact protocol
(thrift-compact-protocol.md of Apache Thrift).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow
import pyarrow.parquet

from hebrew_asr.remote.paths import RemotePath

_MAGIC = b"PAR1"
_CLOSING_BYTES = 8  # the footer's length, and the magic
_WINDOW_BYTES = 1 << 20
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(14)
_FIXED_BYTES = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8, _UUID: 16}
"""Of an element of a list. A field that is true or false says so in its header."""
_VARINTS = (_I16, _I32, _I64)
_ROW_GROUPS = 4  # field of FileMetaData
_NUM_ROWS = 3  # field of RowGroup


def _headers(*kinds: int) -> bytes:
    """Every header of a field of some kinds: how far its number is from the last field's, and its kind."""
    return b"[" + b"".join(re.escape(bytes([step << 4 | kind])) for step in range(1, 16) for kind in kinds) + b"]"


_NUMBER = re.compile(rb"[\x80-\xff]*[\x00-\x7f]")
_NUMBERS = re.compile(b"(?:%b%b|%b){0,500}" % (_headers(*_VARINTS), _NUMBER.pattern, _headers(_TRUE, _FALSE)))
"""Fields that are numbers or truth values, which most are. Not any number of them, since each takes memory of re's; and
not possessive, which skips the start of a cut number before Python 3.11.5."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Neighboring row groups of a file. Pickled to worker processes, so it holds positions in the file, not content."""

    count: int
    rows: int
    entries: tuple[int, int]
    """Where the footer's entries for them begin and end."""
    head: tuple[int, int]
    """What the footer holds before its list of row groups."""
    tail: tuple[int, int]
    """And after it."""

    def footer(self, path: Path | RemotePath) -> pyarrow.parquet.FileMetaData:
        """The file's footer without its other row groups; its ``num_rows`` counts all the same.

        Raises:
            pyarrow.ArrowException: it is damaged.
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            head, entries, tail = (_read(file, *span) for span in (self.head, self.entries, self.tail))
        footer = head + bytes([0xF0 | _STRUCT]) + _varint(self.count) + entries + tail
        alone = _MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC
        return pyarrow.parquet.read_metadata(pyarrow.BufferReader(alone))


def row_groups(path: Path | RemotePath, rows_at_once: int) -> list[RowGroups]:
    """The row groups of a file, as many together as it takes to hold ``rows_at_once`` rows; at least one, maybe empty.

    Raises:
        ValueError: it is no parquet file, or its footer is encrypted or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2) - _CLOSING_BYTES
        closing = _read(file, max(end, 0), end + _CLOSING_BYTES)
        if closing[4:] != _MAGIC:
            raise ValueError("it does not end as a parquet file does")
        start = end - int.from_bytes(closing[:4], "little")
        if start < len(_MAGIC):
            raise ValueError("its footer is longer than the file")
        try:
            return _walked(_Window(file, start, end), rows_at_once)
        except (IndexError, KeyError) as error:
            raise ValueError("its footer is damaged") from error


def _walked(window: _Window, rows_at_once: int) -> list[RowGroups]:
    start, number = window.position, 0
    while True:
        number, kind = window.take(lambda content, at: _field(content, at, number))  # noqa: B023 (called at once)
        if number == _ROW_GROUPS and kind == _LIST:
            break
        if kind == _STOP:
            raise IndexError
        window.take(lambda content, at: (None, _after(content, at, kind)))  # noqa: B023
    head = start, window.position
    left, _ = window.take(_list)
    found: list[tuple[int, int, tuple[int, int]]] = []
    count, rows, begins = 0, 0, window.position
    while left:
        rows += window.take(_row_group)
        count, left = count + 1, left - 1
        if rows >= rows_at_once or not left:
            found.append((count, rows, (begins, window.position)))
            count, rows, begins = 0, 0, window.position
    tail = window.position, window.end
    return [RowGroups(*group, head, tail) for group in found or [(0, 0, (begins, begins))]]


class _Window:
    """The part of a footer that is in memory, and how far it was read."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._start, self._bytes = file, start, b""
        self.position, self.end = start, end

    def take(self, read: Callable[[bytes, int], tuple[_Value, int]]) -> _Value:
        """Read something and go on after it. Raises IndexError where the footer ends before that does."""
        while True:
            try:
                value, at = read(self._bytes, self.position - self._start)
                if at > len(self._bytes):
                    raise IndexError
            except IndexError:
                held = len(self._bytes) if self._start == self.position else 0
                wanted = min(max(_WINDOW_BYTES, 2 * held), self.end - self.position)
                self._start, self._bytes = self.position, _read(self._file, self.position, self.position + wanted)
                if len(self._bytes) <= held:
                    raise
            else:
                self.position = self._start + at
                return value


def _row_group(content: bytes, at: int) -> tuple[int, int]:
    """Rows of the row group whose entry begins at ``at``, and where that ends."""
    rows = number = 0
    while True:
        (number, kind), at = _field(content, at, number)
        if kind == _STOP:
            return rows, at
        if number == _NUM_ROWS and kind in _VARINTS:
            rows = _zigzag(_number(content, at)[0])
        at = _after(content, at, kind)


def _field(content: bytes, at: int, last: int) -> tuple[tuple[int, int], int]:
    """Number and kind of the field whose header is at ``at``, and where its value begins; ``last`` was before it."""
    header = content[at]
    step, kind = header >> 4, header & 15
    if step or kind == _STOP:
        return (last + step, kind), at + 1
    number, at = _number(content, at + 1)
    return (_zigzag(number), kind), at


def _after(content: bytes, at: int, kind: int) -> int:
    """Where the value of a field ends. Raises IndexError where that is after ``content``, or the kind is unknown."""
    if kind == _STRUCT:
        return _after_structs(content, at, 1)
    if kind in (_LIST, _SET):
        (count, kind), at = _list(content, at)
        return _after_structs(content, at, count) if kind == _STRUCT else _after_elements(content, at, kind, count)
    return at if kind in (_TRUE, _FALSE) else _after_elements(content, at, kind, 1)


def _after_structs(content: bytes, at: int, count: int) -> int:
    """Where so many structs end that follow each other. One loop, since a footer may hold millions of fields."""
    left = [count]  # in the list that is being read, and in those around it
    while left:
        if not left[-1]:
            left.pop()
            continue
        at = _NUMBERS.match(content, at).end()  # type: ignore[union-attr]  # it matches where there are none, too
        header = content[at]
        at += 1
        kind = header & 15
        if header == _STOP:
            left[-1] -= 1
            continue
        if header < 16:  # the field's number follows
            at = _after_elements(content, at, _I16, 1)
        if kind == _BINARY and content[at] < 128:
            at += 1 + content[at]
        elif kind == _STRUCT:
            left.append(1)
        elif kind == _LIST and content[at] & 15 == _STRUCT:
            (count, _), at = _list(content, at)
            left.append(count)
        else:
            at = _after(content, at, kind)
    return at


def _after_elements(content: bytes, at: int, kind: int, count: int) -> int:
    for _ in range(count):
        if kind in _VARINTS:
            found = _NUMBER.match(content, at)
            if found is None:
                raise IndexError
            at = found.end()
        elif kind == _BINARY:
            length, at = _number(content, at)
            at += length
        else:
            at += _FIXED_BYTES[kind]
        if at > len(content):
            raise IndexError
    return at


def _list(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Length of a list and the kind of its elements, and where the first one begins."""
    count, kind = content[at] >> 4, content[at] & 15
    if count < 15:
        return (count, kind), at + 1
    count, at = _number(content, at + 1)
    return (count, kind), at


def _number(content: bytes, at: int) -> tuple[int, int]:
    found = _NUMBER.match(content, at)
    if found is None:
        raise IndexError
    value = 0
    for byte in reversed(found[0]):
        value = value << 7 | byte & 0x7F
    return value, found.end()


def _zigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
