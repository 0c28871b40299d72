"""Which row a worker process died of. Decoders are C code: a damaged file may end the process that reads it.

A worker notes each row that it is at. Where it ends by a signal that its own code raised, the row is set aside: when
its unit is converted again, it is a dropped clip. Other ends (kill -9, want of memory) say nothing about a row.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from hebrew_asr.sources import Row, Unit, unit_name

_CRASHES = {
    -number: number.name
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
}
_NOTE_BYTES = 256
_notes: dict[Path, int] = {}
"""Descriptor of this process's note, by its folder: opened once, since a row takes a few milliseconds."""


def rows_noted(unit: Unit, work: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a unit with their positions, each noted as it is come to; those set aside say why they are no clips.

    Raises:
        DataError: the source itself cannot be read.
        OSError: the disk is full or not writable.
    """
    name, note = unit_name(unit), _note_of(work)
    crashed = _crashed_rows(work, name)
    for position, row in unit.rows():
        if position in crashed:
            row = replace(row, problem=("undecodable audio", f"decoding it ends the process ({crashed[position]})"))
        os.pwrite(note, f"{name}/{position}".encode().ljust(_NOTE_BYTES), 0)
        yield position, row


def _note_of(work: Path) -> int:
    """The descriptor by which this process says which row it is at."""
    folder = work / "at"
    if folder not in _notes:
        folder.mkdir(exist_ok=True)
        _notes[folder] = os.open(_note_path(work, os.getpid()), os.O_WRONLY | os.O_CREAT, 0o644)
    return _notes[folder]


def _note_path(work: Path, pid: int) -> Path:
    """Process ids are a machine's own, and several machines may work on one folder."""
    return work / "at" / f"{socket.gethostname()}-{pid}"


def forget_notes(work: Path) -> None:
    """Delete what earlier workers noted: process ids recur."""
    shutil.rmtree(work / "at", ignore_errors=True)


def _crashed_rows(work: Path, unit_name: str) -> dict[int, str]:
    """The rows of a unit that were set aside, each with the signal that it raised."""
    return {int(path.name): path.read_text() for path in (work / "crashed" / unit_name).glob("*")}


def crash_of(process: BaseProcess, work: Path) -> tuple[str, str] | None:
    """The row that a process was at, and the signal, if it ended by one that its own code raised."""
    crash = _CRASHES.get(process.exitcode or 0)
    row = _note_path(work, process.pid or 0)
    return (row.read_text().strip(), crash) if crash and row.is_file() else None


def set_aside(row: str, crash: str, work: Path) -> None:
    """When its unit is converted again, this row is a dropped clip."""
    path = work / "crashed" / row
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(crash)
