"""Where the audio of a manifest lies, and whether it may lie there."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from hebrew_asr.data.clips import array_of, as_path, compute, path_bytes, values_of
from hebrew_asr.errors import shortened
from hebrew_asr.remote.cache import origin_of
from hebrew_asr.remote.joined import origins_of
from hebrew_asr.remote.paths import is_url

_NO_NAMES = [b"", b".", b".."]


def locate(
    batch: pyarrow.RecordBatch, folder: Path, *, check_audio: bool, allow_outside: bool
) -> tuple[list[str], dict[int, str]]:
    """Find the audio of clips by listing each folder once: asking for each file takes several times as long.

    Args:
        batch: clips in columns, with folders as their manifest names them.
        folder: of the manifest. Where it is that of a set at a URL, audio lies there, and none is looked at.
        check_audio: also require every file to exist.
        allow_outside: accept files outside ``folder``.

    Returns:
        The absolute path of each folder that ``batch`` names, with a slash at its end, and by row what is wrong.
    """
    if (origin := origin_of(folder)) is not None:
        return _elsewhere(batch, origin)
    locator = _Locator(folder, check_audio, allow_outside)
    codes, heads = values_of(batch["folder"].indices), list(map(as_path, batch["folder"].dictionary.to_pylist()))
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(heads))
    prefixes: list[str] = []
    problems: dict[int, str] = {}
    for head, size, stop in zip(heads, sizes, np.cumsum(sizes), strict=True):
        rows = order[stop - size : stop]
        try:
            prefixes.append(locator.prefix(head))
            doubtful = rows[locator.in_doubt(head, batch["name"].take(array_of(rows, pyarrow.int64())))]
        except ValueError as error:  # it holds what no path can
            prefixes.append("")
            problems |= dict.fromkeys(rows.tolist(), str(error))
            continue
        for row in doubtful.tolist():
            try:
                locator.check(head, as_path(batch["name"][row].as_py()))
            except ValueError as error:
                problems[row] = str(error)
    return prefixes, problems | (_cut_short(batch, prefixes, problems) if check_audio else {})


def _elsewhere(batch: pyarrow.RecordBatch, origin: str) -> tuple[list[str], dict[int, str]]:
    """As :func:`locate`, of a set at a URL."""
    heads = [as_path(head) for head in batch["folder"].dictionary.to_pylist()]
    above = {code: head for code, head in enumerate(heads) if is_url(head) or not _goes_down(head)}
    codes = values_of(batch["folder"].indices)
    rows = np.flatnonzero(np.isin(codes, [*above])).tolist()
    problems = {row: f"audio path {shortened(repr(above[codes[row]]))}… leaves the set at {origin}" for row in rows}
    return [f"{origin}/{head}" for head in heads], problems


def _cut_short(batch: pyarrow.RecordBatch, prefixes: list[str], problems: Container[int]) -> dict[int, str]:
    """By row, that a shard ends before the last of its clips: a copy that was broken off, for example."""
    if not compute.max(batch["size_bytes"]).as_py():
        return {}
    ends = compute.add(batch["offset_bytes"], batch["size_bytes"])
    columns = {
        "folder": batch["folder"].indices,
        "name": batch["name"],
        "row": array_of(range(len(ends)), pyarrow.int64()),
        "end": ends,
    }
    last = pyarrow.table(columns).group_by(["folder", "name"]).aggregate([("end", "max"), ("row", "min")])
    found = {}
    for shard in last.to_pylist():
        path = prefixes[shard["folder"]] + as_path(shard["name"])
        if shard["row_min"] not in problems and not is_url(path) and os.stat(path).st_size < shard["end_max"]:  # noqa: PTH116
            found[shard["row_min"]] = f"{shortened(path)} is not whole: clips lie beyond its end"
    return found


def _goes_down(written: str) -> bool:
    """Whether a path stays below the folder that it starts at, but for the links on its way."""
    return written[:1] != "/" and ".." not in written.split("/")


class _Locator:
    def __init__(self, folder: Path, check_audio: bool, allow_outside: bool):
        self._folder, self._origins = os.path.realpath(folder), origins_of(folder)
        self._check_audio, self._allow_outside = check_audio, allow_outside
        self._places: dict[str, _Place] = {}

    def prefix(self, head: str) -> str:
        """The real path of a folder that the manifest names ``head``, with a slash at its end; a URL stays.

        Raises:
            ValueError: it is a URL, and not of a set that was joined.
        """
        if not is_url(head):
            return self._place(head).prefix
        if ".." in head.split("/") or not any(head.startswith(f"{origin}/") for origin in self._origins):
            raise ValueError(f"audio at {shortened(repr(head))}: only a set of `hebrew-asr join` may name URLs")
        return head

    def in_doubt(self, head: str, names: pyarrow.Array) -> np.ndarray:
        """(names,) bool, which of a folder's files must be looked at by themselves; none at a URL, as of any set."""
        if is_url(head):
            return np.zeros(len(names), bool)
        place = self._place(head)
        if self._check_audio or not (self._allow_outside or (place.is_inside and _goes_down(head))):
            return ~_is_in(names, self._plain_files(place))
        return _is_in(names, _NO_NAMES)

    def check(self, head: str, name: str) -> None:
        """Raises ValueError if a file leaves the manifest's folder and may not, or is not there."""
        place = self._place(head)
        audio, is_inside = place.prefix + name, place.is_inside
        if name in ("", ".", "..") or os.path.islink(audio):  # noqa: PTH114 (Path's raises for a name that is too long)
            audio = os.path.realpath(audio)
            is_inside = _goes_down(head + name) or self._contains(audio)
        if not (is_inside or self._allow_outside):
            raise ValueError(
                f"audio path {shortened(repr(head + name))} leaves the manifest's folder; if it may, set "
                "data.allow_outside=true in the recipe (--set), or give --allow-outside to eval"
            )
        if self._check_audio and not os.path.isfile(audio):  # noqa: PTH113
            raise ValueError(f"audio file not found: {shortened(audio)}")

    def _place(self, head: str) -> _Place:
        place = self._places.get(head)
        if place is None:
            folder = os.path.realpath(f"{self._folder}/{head}" if head[:1] != "/" else head)
            is_inside = _goes_down(head) or self._contains(folder)
            place = self._places[head] = _Place(folder.rstrip("/") + "/", is_inside)
        return place

    def _plain_files(self, place: _Place) -> list[bytes]:
        """Names of a folder's files but for symbolic links: nothing need be asked about these."""
        names: list[bytes] = []
        if place.is_inside or self._allow_outside:
            try:
                with os.scandir(place.prefix) as entries:
                    names = [path_bytes(entry.name) for entry in entries if entry.is_file(follow_symlinks=False)]
            except OSError:  # not there, or may not be listed: then each file is looked at
                pass
        return names

    def _contains(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._folder.rstrip('/')}/")


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder that holds audio."""

    prefix: str
    """Its real path, with a slash at the end."""
    is_inside: bool
    """Whether it is the manifest's folder or below it."""


def _is_in(names: pyarrow.Array, others: list[bytes]) -> np.ndarray:
    return values_of(compute.is_in(names, value_set=array_of(others, pyarrow.large_binary())))
