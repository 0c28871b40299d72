"""What a run writes while it trains, on a disk that may be full or gone for a while.

What cannot be written is kept in memory until the disk takes it; one warning says so, and training goes on. Only where
somebody removes ``metrics.jsonl``, and most likely the run directory with it, does the run end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.files import from_json, write_atomically
from hebrew_asr.logs import log
from hebrew_asr.report.records import Record, as_row


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line, in order. A resume cuts the steps that will be run again.

    A record is about half a KiB: a run of 100,000 steps whose disk never recovers holds 50 MiB of them.
    """

    def __init__(self, path: Path, resumed_step: int | None = None, *, is_evaluated: bool = False):
        """Begin the file, or keep what the checkpoint of a resumed run holds.

        Args:
            path: of the file.
            resumed_step: of the checkpoint; None where the run starts from step 0.
            is_evaluated: whether what is measured at that step is in the checkpoint.

        Raises:
            OSError: the file can be neither read nor made.
        """
        content = path.read_bytes() if path.is_file() else b""
        lines = [] if resumed_step is None else content.split(b"\n")
        kept = b"".join(line + b"\n" for line in lines if _is_kept(line, resumed_step or 0, is_evaluated))
        if not content.startswith(kept):
            write_atomically(path, kept)
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.ftruncate(self._handle, len(kept))  # which needs no room
        self._end = len(kept)
        """End of the last whole record, in bytes. What a failed write left behind it is overwritten."""
        self._waiting: list[bytes] = []
        self._trouble = _Trouble("records", path)

    def write(self, record: Record) -> None:
        """Append a record, after those that could not be written yet.

        Raises:
            EnvironmentProblem: somebody removed the file, and most likely the run directory with it.
        """
        if not os.fstat(self._handle).st_nlink and not self._path.exists():  # else an editor put another in its place
            raise EnvironmentProblem(
                f"{self._path} was removed while it was written; a run cannot go on without its records: start again"
            )
        self._waiting.append(json.dumps(as_row(record), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._write_waiting()

    def close(self) -> None:
        """Close the file; a warning says how many records it lacks, if any."""
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
            self._trouble.begin(error)
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
        """Write ``name``, and the files that could not be written yet."""
        self._waiting[name] = text
        self._write_waiting()

    def close(self) -> None:
        """Try a last time; a warning names what is lost."""
        self._write_waiting()
        if self._waiting:
            log.warning("not written in %s: %s", self._folder, ", ".join(self._waiting))

    def _write_waiting(self) -> None:
        try:
            for name, text in list(self._waiting.items()):
                write_atomically(self._folder / name, text)
                del self._waiting[name]
        except OSError as error:
            self._trouble.begin(error)
        else:
            self._trouble.end()


class _Trouble:
    """Warns once that a disk does not take something, and says once that it does again."""

    def __init__(self, what: str, where: Path):
        self._what, self._where, self._is_known = what, where, False

    def begin(self, error: OSError) -> None:
        if not self._is_known:
            log.warning(
                "%s cannot be written in %s (%s); training goes on, they wait in memory",
                *(self._what, self._where, error.strerror or error),
            )
        self._is_known = True

    def end(self) -> None:
        if self._is_known:
            log.info("%s in %s are written again; none is missing", self._what, self._where)
        self._is_known = False


def _is_kept(line: bytes, resumed_step: int, is_evaluated: bool) -> bool:
    """Whether a line is of a step that the checkpoint holds, so that it will not be run again."""
    try:
        record = from_json(line)
        step = float(record["step"]) + (record["event"] == "phase")  # proved by the first step of the phase
        if "split" in record and step == resumed_step:
            return is_evaluated  # else the evaluation is made up for
        return step <= resumed_step
    except (ValueError, KeyError, TypeError):
        return False  # cut off by a kill, perhaps within a letter
