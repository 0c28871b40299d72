"""Objects of one dataclass in columns: millions of them would take gigabytes. One is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow

from hebrew_asr.data.clips import array_of, compute, only_chunk, values_of

_AT_ONCE = 4096
_TYPES = {"int": "int64", "float": "double", "bool": "bool"}
_TUPLE = "tuple[str, ...]"

T = TypeVar("T")


class Records(Generic[T]):
    """Objects in their order. Changing one changes no column."""

    def __init__(self, kind: type[T], objects: Iterable[T]):
        """Columns of ``objects``, which may be made one after the other.

        ``kind``: a dataclass whose fields are str (or of such values), int, float, bool or tuple[str, ...].
        """
        text = pyarrow.large_string()
        types = {
            field.name: pyarrow.list_(text)
            if field.type == _TUPLE
            else pyarrow.type_for_alias(_TYPES.get(str(field.type), "large_string"))
            for field in fields(kind)  # type: ignore[arg-type]
        }
        schema, rest = pyarrow.schema(types), iter(objects)
        some, tables = list(islice(rest, _AT_ONCE)), []
        while some or not tables:
            columns = ([getattr(one, name) for one in some] for name in schema.names)
            tables.append(pyarrow.table(list(map(array_of, columns, schema.types)), schema=schema))
            some = list(islice(rest, _AT_ONCE))
        self._kind, self._table = kind, pyarrow.concat_tables(tables).combine_chunks()
        self.numbers = np.arange(len(self._table))
        """(objects,) int64, the place of each among those that the first columns were made of."""

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> T:
        number = range(len(self))[index]
        (one,) = self._made(self._table.slice(number, 1))
        return one

    def __iter__(self) -> Iterator[T]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self._made(self._table.slice(first, _AT_ONCE))

    def _made(self, table: pyarrow.Table) -> Iterator[T]:
        columns = (
            map(tuple, column.to_pylist()) if pyarrow.types.is_list(column.type) else column.to_pylist()
            for column in table.columns
        )
        return (self._kind(*values) for values in zip(*columns, strict=True))

    def column(self, name: str) -> pyarrow.Array:
        """The values of a field."""
        return only_chunk(self._table[name])

    def equal(self, name: str, value: str) -> np.ndarray:
        """(objects,) bool, which have this value in a field."""
        return values_of(compute.equal(self.column(name), array_of([value], pyarrow.large_string())[0]))

    def where(self, chosen: np.ndarray) -> Records[T]:
        """Those that ``chosen`` (objects,) bool marks."""
        other = object.__new__(Records)
        other._kind, other.numbers = self._kind, self.numbers[chosen]
        other._table = self._table.filter(array_of(chosen, pyarrow.bool_())).combine_chunks()
        return other

    def replace(self, rows: list[int], **values: Any) -> None:
        """Give these rows, in ascending order, a value each in some fields; a lone string is for all of them."""
        places = np.arange(len(self))
        places[rows] = len(self) + np.arange(len(rows))
        for name, own in values.items():
            column = self.column(name)
            held = array_of([own] * len(rows) if isinstance(own, str) else own, column.type)
            changed = pyarrow.concat_arrays([column, held]).take(array_of(places, pyarrow.int64()))
            self._table = self._table.set_column(self._table.column_names.index(name), name, changed)
