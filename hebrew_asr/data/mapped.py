"""The Arrow file of a manifest: its clips in columns, mapped into memory instead of read.

An Arrow IPC file (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format) of one record batch, which
``pyarrow.ipc.open_file`` opens, and so does what is built on Arrow. Its metadata say of which JSON lines it was made,
and seal the columns: a file that is stale, changed or damaged is not believed. The hash is no defense against somebody
who means to deceive: whoever can write here can change the JSON lines too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import xxhash

from hebrew_asr.data.clips import COLUMNS, NEW_WORDS, Clips, values_of
from hebrew_asr.data.vocabulary import new_words
from hebrew_asr.errors import on_one_line
from hebrew_asr.files import atomic, from_json, xxh3_of

_KEY = b"hebrew_asr"
_FORMAT = 3
_SCHEMA = COLUMNS.append(NEW_WORDS)
_HEAD_BYTES = 1 << 16
"""The schema with its metadata stands at the start of an Arrow IPC file."""


class NotBelieved(ValueError):
    """An Arrow file that must not be taken for its manifest; the message goes on from its name."""


def mapped_path(manifest: Path) -> Path:
    """Where the Arrow file of a manifest lies."""
    return manifest.with_suffix(".arrow")


def write_mapped(path: Path, clips: Clips, made_of: str) -> None:
    """Write the Arrow file of all ``clips``, whose text has the digest ``made_of``, atomically."""
    said: dict[str, Any] = {"format": _FORMAT, "made_of": made_of, "fingerprint": clips.fingerprint}
    columns = [clips.batch[name] for name in COLUMNS.names]
    batch = pyarrow.record_batch([*columns, new_words(clips.batch["text"])], schema=_SCHEMA)
    said["seal"] = _seal(batch, said)
    batch = batch.replace_schema_metadata({_KEY: json.dumps(said)})
    with atomic(path) as stream, pyarrow.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def open_mapped(path: Path, text: Path | None) -> tuple[pyarrow.RecordBatch, str]:
    """Map the Arrow file of a manifest.

    Args:
        path: of the Arrow file.
        text: the manifest as JSON lines; None if there is none.

    Returns:
        Its columns, which live in the mapped file, and the fingerprint of its clips.

    Raises:
        NotBelieved: it is no such file, or not whole, or was made of another text.
    """
    try:
        with pyarrow.ipc.open_file(pyarrow.memory_map(str(path))) as reader:
            said = from_json((reader.schema.metadata or {}).get(_KEY, b"{}"))
            whole = reader.schema.equals(_SCHEMA) and reader.num_record_batches == 1
            batch = reader.get_batch(0) if whole else None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise NotBelieved(f"cannot be opened: {on_one_line(error)}") from error
    if said.get("format") != _FORMAT:
        raise NotBelieved("is not the Arrow file of a manifest, or of another version")
    if batch is None:
        raise NotBelieved("was changed after it was written")
    if said.pop("seal", None) != _seal(batch, said):
        raise NotBelieved("was changed or damaged after it was written")
    if text is not None and xxh3_of(text) != said["made_of"]:
        raise NotBelieved(f"was made of another {text.name}")
    return batch, said["fingerprint"]


def is_mapped(path: Path) -> bool:
    """Whether a file is what :func:`write_mapped` writes, whole or not."""
    with path.open("rb") as stream:
        return _KEY in stream.read(_HEAD_BYTES)


def _seal(batch: pyarrow.RecordBatch, said: dict[str, Any]) -> str:
    digest = xxhash.xxh3_128(json.dumps(said, sort_keys=True).encode())
    for column in batch.columns:
        for part in _contents(column):
            digest.update(part)
    return digest.hexdigest()


def _contents(column: pyarrow.Array) -> Iterator[memoryview]:
    """All values of a column of no nulls, without the padding of its buffers."""
    if isinstance(column, pyarrow.DictionaryArray):
        yield from _contents(column.indices)
        yield from _contents(column.dictionary)
    elif isinstance(column, pyarrow.ListArray):
        yield from _contents(column.offsets)
        yield from _contents(column.values)
    elif pyarrow.types.is_primitive(column.type):
        yield values_of(column).data
    else:
        _, offsets, values = column.buffers()
        bounds = np.frombuffer(offsets, np.int64)[: len(column) + 1]
        yield memoryview(offsets)[: bounds.nbytes]
        yield memoryview(values or b"")[: bounds[-1]]
