"""The record of a joined set: of which sets it was made, where their sound lies, and whether they still are the same.

`hebrew-asr join` writes it beside manifests that name the sound of other sets, in folders below links or at URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json, write_json, xxh3_of
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.remote.paths import is_url

RECORD = "joined.json"


@dataclass(frozen=True)
class JoinedSet:
    """One of the sets that a joined set was made of."""

    name: str
    place: str
    """Absolute path of its folder, or its URL."""
    sides: dict[str, dict[str, Any]]
    """Of ``train`` and ``eval`` what was taken: ``clips``, ``hours``, and the ``fingerprint`` of the whole manifest."""
    tables: dict[str, str]
    """By its name, the digest of each file that it was read from (:func:`hebrew_asr.files.xxh3_of`)."""


def write_record(folder: Path, sets: list[JoinedSet]) -> None:
    """Write the record of a joined set into its folder."""
    write_json(folder / RECORD, {"sets": [asdict(one) for one in sets]})


def joined_sets(folder: Path) -> list[JoinedSet]:
    """The sets that the one in ``folder`` was made of; none if it was not joined.

    Raises:
        DataError: the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return []
    try:
        return [JoinedSet(**one) for one in from_json(path.read_text(encoding="utf-8"))["sets"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}, the record of a joined set: join its sets anew") from error


def origins_of(folder: Path) -> list[str]:
    """URLs at which sound of the joined set in ``folder`` lies."""
    return [one.place for one in joined_sets(folder) if is_url(one.place)]


def changed_tables(folder: Path, *stems: str) -> Iterator[tuple[str, str, str]]:
    """Manifests that are not what was joined into the set in ``folder``: of which set, their names, and what happened.

    ``stems``: ``train`` or ``eval``, or both. Raises EnvironmentProblem where the server of a set does not answer.
    """
    for one in joined_sets(folder):
        own = set_folder(one.place)
        for name, digest in one.tables.items():
            table = own / name
            if table.stem in stems and not (table.is_file() and xxh3_of(table) == digest):
                yield one.place, name, "has changed since" if table.is_file() else "is gone"


def refuse_changed(manifest: Path) -> None:
    """Check that the sets behind a manifest of a joined set are those that were joined.

    Raises:
        DataError: one of them has another manifest now, or none, so that nothing says what sound lies there.
        EnvironmentProblem: its server does not answer.
    """
    for place, name, change in changed_tables(manifest.parent, manifest.stem):
        told = f"{place} is not what was joined into {manifest.parent}: its {name} {change}"
        raise DataError(f"{told}. Put it back, or join the sets anew")
