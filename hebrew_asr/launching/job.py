"""How ``hebrew-asr train`` learns its ranks' process ids and exit codes; those of DeepSpeed's launcher say little.

A folder holds the process id of each rank that can take a signal, and its exit code when it leaves. The variable
``HEBREW_ASR_JOB`` names the folder, and the process that made it (``processes.py``).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hebrew_asr.files import write_atomically
from hebrew_asr.launching.processes import JOB_VARIABLE


class Job:
    """A job's folder: the ranks write it, ``hebrew-asr train`` reads it."""

    def __init__(self, folder: Path | None):
        """``folder``: None for ranks that another launcher started; then nothing is written."""
        self._folder = folder

    @classmethod
    def of_this_rank(cls) -> Job:
        """That of the job this process belongs to, if ``hebrew-asr`` started it."""
        folder = os.environ.get(JOB_VARIABLE, "").partition(":")[2]
        return cls(Path(folder) if folder else None)

    def join(self) -> None:
        """This rank can take signals from here on."""
        self._write("pid", os.getpid())

    def report(self, code: int) -> None:
        """This rank leaves with ``code``."""
        self._write("code", code)

    def pids(self) -> dict[int, int]:
        """Process ids of the ranks that have joined."""
        return self._read("pid")

    def codes(self) -> dict[int, int]:
        """Exit codes of the ranks that have left by themselves."""
        return self._read("code")

    def _write(self, kind: str, value: int) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):  # hebrew-asr was killed, and its temporary folder cleared away
                write_atomically(self._folder / f"{os.environ.get('RANK', '0')}.{kind}", str(value))

    def _read(self, kind: str) -> dict[int, int]:
        assert self._folder is not None
        return {int(path.stem): int(path.read_text()) for path in self._folder.glob(f"[0-9]*.{kind}")}
