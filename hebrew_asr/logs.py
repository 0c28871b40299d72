"""The log of a run: every line has its time, and in a job its rank. Warnings and errors go to stderr, others to stdout.

What a command answers (its result, or the one line of an error) is printed without either.
"""

from __future__ import annotations

import logging
import os
import sys
import time

log = logging.getLogger("hebrew_asr")


def log_line(text: str, level: int = logging.INFO) -> str:
    """A line of the log: ``2026-11-26 10:08:41 rank 0 | warning: …``."""
    rank = f" rank {os.environ['RANK']}" if "RANK" in os.environ else ""
    kind = "" if level == logging.INFO else f"{logging.getLevelName(level).lower()}: "
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}{rank} | {kind}{text}"


class _StandardStreams(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(log_line(record.getMessage(), record.levelno), file=stream, flush=True)


log.addHandler(_StandardStreams())
log.setLevel(logging.INFO)
log.propagate = False
