"""What a run writes while it trains, on a disk that may be full or gone for a while.

Nothing here stops training: what cannot be written is told once, kept in memory, and written when the disk takes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from hebrew_asr.files import write_atomically
from hebrew_asr.logs import log
from hebrew_asr.report.records import Record, as_row
from hebrew_asr.training.train_state import TrainState


class MetricsFile:
    """One JSON object a line, in order; what will be made again is cut first.

    A record is about half a KiB: a run of 100,000 steps whose disk never recovers holds 50 MiB of them.
    """

    def __init__(self, path: Path, resumed: TrainState | None = None):
        """``resumed``: the checkpoint's state; None where the run starts from nothing.

        Raises:
            OSError: the file can be neither read nor made.
        """
        content = path.read_bytes() if path.is_file() else b""
        lines = content.split(b"\n") if resumed is not None else []
        kept = b"".join(line + b"\n" for line in lines if resumed is not None and _is_kept(line, resumed))
        if not content.startswith(kept):
            write_atomically(path, kept)
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.ftruncate(self._handle, len(kept))  # which needs no room
        self._end = len(kept)
        """Behind the last whole record. What a failed write left there is written over."""
        self._waiting: list[bytes] = []
        self._trouble = _Trouble("records", path)

    def write(self, record: Record) -> None:
        """Append a record, after those that wait."""
        self._waiting.append(json.dumps(as_row(record), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._write_waiting()

    def close(self) -> None:
        """Close the file; tells how many records it lacks, if it does."""
        self._write_waiting()
        os.close(self._handle)
        if self._waiting:
            log.warning("%s lacks the last %d records", self._path, len(self._waiting))

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                line = self._waiting[0]
                if os.pwrite(self._handle, line, self._end) < len(line):  # what there was room for
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._end += len(line)
                self._waiting.pop(0)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
            self._trouble.tell(error)
        else:
            self._trouble.end()


class PatientFiles:
    """Whole files of a run directory, each written atomically, now or when the disk takes it."""

    def __init__(self, folder: Path):
        """``folder``: the run directory."""
        self._folder = folder
        self._waiting: dict[str, str] = {}
        self._trouble = _Trouble("files", folder)

    def write(self, name: str, text: str) -> None:
        """Write ``name``, and what waits."""
        self._waiting[name] = text
        self._write_waiting()

    def close(self) -> None:
        """Try a last time; tells what is lost."""
        self._write_waiting()
        if self._waiting:
            log.warning("not written in %s: %s", self._folder, ", ".join(self._waiting))

    def _write_waiting(self) -> None:
        try:
            for name, text in list(self._waiting.items()):
                write_atomically(self._folder / name, text)
                del self._waiting[name]
        except OSError as error:
            self._trouble.tell(error)
        else:
            self._trouble.end()


class _Trouble:
    """Tells once that a disk does not take something, and once that it does again."""

    def __init__(self, what: str, where: Path):
        self._what, self._where, self._is_told = what, where, False

    def tell(self, error: OSError) -> None:
        if not self._is_told:
            log.warning(
                "%s cannot be written in %s (%s); training goes on, they wait in memory",
                *(self._what, self._where, error.strerror or error),
            )
        self._is_told = True

    def end(self) -> None:
        if self._is_told:
            log.info("%s in %s are written again; none is missing", self._what, self._where)
        self._is_told = False


def _is_kept(line: bytes, resumed: TrainState) -> bool:
    """Whether a line tells of what the checkpoint holds and will not be made again."""
    try:
        record = json.loads(line)
        step = float(record["step"]) + (record["event"] == "phase")  # proved by the first step of the phase
        if "split" in record and step == resumed.step:
            return resumed.evaluated_step == resumed.step  # else the evaluation is made up for
        return step <= resumed.step
    except (ValueError, KeyError, TypeError):
        return False  # torn by a kill, in a letter too
