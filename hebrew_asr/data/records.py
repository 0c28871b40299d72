"""Objects of one dataclass in columns: millions of them would take gigabytes. One is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow

from hebrew_asr.data.clips import array_of, compute, values_of

_AT_ONCE = 4096
_TYPES = {"int": "int64", "float": "double", "bool": "bool"}
_TUPLE = "tuple[str, ...]"

T = TypeVar("T")


class Records(Sequence[T]):
    """Objects in their order. Changing one changes no column. Those that lie in a file are pickled by its path."""

    def __init__(self, kind: type[T], objects: Iterable[T], file: Path | None = None):
        """Columns of ``objects``, which may be made one after the other.

        Args:
            kind: a dataclass whose fields are str (or of such values), int, float, bool or tuple[str, ...].
            objects: what the columns hold.
            file: written with the columns, which then lie in it, mapped; by default they lie in memory.

        Raises:
            OSError: the file cannot be written.
        """
        text = pyarrow.large_string()
        types = {
            field.name: pyarrow.list_(text)
            if field.type == _TUPLE
            else pyarrow.type_for_alias(_TYPES.get(str(field.type), "large_string"))
            for field in fields(kind)  # type: ignore[arg-type]
        }
        schema = pyarrow.schema(types)
        if file is None:
            self._batches = pyarrow.Table.from_batches(_batches(objects, schema), schema).to_batches()
        else:
            with file.open("wb") as stream, pyarrow.ipc.new_file(stream, schema) as writer:
                for batch in _batches(objects, schema):
                    writer.write_batch(batch)
            self._batches = _mapped(file)
        self._kind, self._file = kind, file
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.numbers = np.arange(self._starts[-1])
        """(objects,) int64, ascending, the place of each among those that the first columns were made of."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Records[T]: ...
    def __getitem__(self, index: int | slice) -> T | Records[T]:
        if isinstance(index, slice):
            return self._numbered(self.numbers[index])
        number = self.numbers[index]
        batch = int(np.searchsorted(self._starts, number, "right")) - 1
        (one,) = self._made(self._batches[batch].slice(int(number - self._starts[batch]), 1))
        return one

    def __iter__(self) -> Iterator[T]:
        for batch in self._chosen(lambda batch: batch):
            yield from self._made(batch)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) if self._file is None else vars(self) | {"_batches": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._file is not None:
            self._batches = _mapped(self._file)

    def _made(self, batch: pyarrow.RecordBatch) -> Iterator[T]:
        columns = (
            map(tuple, column.to_pylist()) if pyarrow.types.is_list(column.type) else column.to_pylist()
            for column in batch.columns
        )
        return (self._kind(*values) for values in zip(*columns, strict=True))

    def _chosen(self, of: Callable[[pyarrow.RecordBatch], Any]) -> Iterator[Any]:
        """Of batches, or of what ``of`` takes of each, the rows that are of these objects."""
        bounds = np.searchsorted(self.numbers, self._starts)
        for at in np.flatnonzero(np.diff(bounds)).tolist():
            numbers, batch = self.numbers[bounds[at] : bounds[at + 1]], of(self._batches[at])
            is_whole = len(numbers) == len(batch)
            yield batch if is_whole else batch.take(array_of(numbers - self._starts[at], pyarrow.int64()))

    def parts(self, name: str) -> Iterator[pyarrow.Array]:
        """The values of a field, some thousand at a time."""
        return self._chosen(lambda batch: batch[name])

    def values(self, name: str) -> Iterator[Any]:
        """The values of a field, one after the other."""
        return (value for part in self.parts(name) for value in part.to_pylist())

    def column(self, name: str) -> np.ndarray:
        """(objects,) The values of a field of numbers or bools."""
        return np.concatenate([np.zeros(0, bool), *map(values_of, self.parts(name))])

    def coded(self, name: str, until: str) -> tuple[np.ndarray, list[str]]:
        """(objects,) int32, the text before ``until`` in a field of each, by number; and these texts by it."""
        numbers: dict[str, int] = {}
        found = [numbers.setdefault(value.partition(until)[0], len(numbers)) for value in self.values(name)]
        return np.array(found, np.int32), list(numbers)

    def equal(self, name: str, value: str) -> np.ndarray:
        """(objects,) bool, which have this value in a field."""
        wanted = array_of([value], pyarrow.large_string())[0]
        found = (values_of(compute.equal(part, wanted)) for part in self.parts(name))
        return np.concatenate([np.zeros(0, bool), *found])

    def where(self, chosen: np.ndarray) -> Records[T]:
        """Those that ``chosen`` (objects,) bool marks, as they are now; their columns are not copied."""
        return self._numbered(self.numbers[chosen])

    def _numbered(self, numbers: np.ndarray) -> Records[T]:
        other: Records[T] = object.__new__(Records)
        vars(other).update(vars(self) | {"numbers": numbers})
        return other

    def replace(self, numbers: list[int], **values: Any) -> None:
        """Give the objects of these ``numbers``, ascending, a value each in some fields; a lone string is for all."""
        bounds = np.searchsorted(numbers, self._starts).tolist()
        self._batches, self._file = list(self._batches), None
        for at, (start, first, stop) in enumerate(zip(self._starts.tolist(), bounds, bounds[1:], strict=False)):
            for name, own in values.items() if stop > first else ():
                batch = self._batches[at]
                held = [own] * (stop - first) if isinstance(own, str) else own[first:stop]
                places = np.arange(len(batch))
                places[np.array(numbers[first:stop]) - start] = len(batch) + np.arange(stop - first)
                both = pyarrow.concat_arrays([batch[name], array_of(held, batch[name].type)])
                changed = both.take(array_of(places, pyarrow.int64()))
                self._batches[at] = batch.set_column(batch.schema.get_field_index(name), name, changed)


def _mapped(file: Path) -> list[pyarrow.RecordBatch]:
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all().to_batches()


def _batches(objects: Iterable[Any], schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    rest = iter(objects)
    while some := list(islice(rest, _AT_ONCE)):
        columns = ([getattr(one, name) for one in some] for name in schema.names)
        yield pyarrow.record_batch(list(map(array_of, columns, schema.types)), schema=schema)
