"""How far conversion is: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from hebrew_asr.corpus.preparation.convert import UnitSummary
from hebrew_asr.streams import can_redraw

_LINE_EVERY_S = 15.0


class Progress:
    """Counts rows, clips and hours; safe to call from several threads."""

    def __init__(self, total_bytes: int) -> None:
        """``total_bytes``: size of all shards, from which the rows of those still to download are estimated."""
        self._lock = threading.Lock()
        self._total_bytes = total_bytes
        self._known_rows = self._known_bytes = self._expected = self._done = self._skipped = self._clips = 0
        self._seconds = 0.0
        self._started = self._printed = time.monotonic()
        self._bar = RichProgress(
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[speed]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=sys.stderr),
            disable=not can_redraw(sys.stderr),
        )
        self._task = self._bar.add_task("", total=0, speed="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        self._bar.stop()
        if self._bar.disable and fault is None:
            print(self.line(), file=sys.stderr)

    def expect(self, rows: int, size_bytes: int) -> None:
        """A shard of so many rows and bytes has arrived."""
        with self._lock:
            self._known_rows += rows
            self._known_bytes += size_bytes
            self._expected = round(self._known_rows * max(self._total_bytes, 1) / max(self._known_bytes, 1))
            self._bar.update(self._task, total=self._expected)

    def skip(self, rows: int) -> None:
        """These rows were converted by an earlier call."""
        with self._lock:
            self._skipped += rows
            self._bar.update(self._task, advance=rows)

    def begin_again(self) -> None:
        """All shards will be expected once more, and what is converted skipped."""
        with self._lock:
            self._known_rows = self._known_bytes = self._done = self._skipped = 0
            self._bar.update(self._task, completed=0)

    def add(self, unit: UnitSummary) -> None:
        """A unit is converted."""
        with self._lock:
            self._done += unit.rows
            self._clips += unit.clips
            self._seconds += unit.seconds
            self._bar.update(self._task, advance=unit.rows, speed=self.speed())
            now = time.monotonic()
            if self._bar.disable and now - self._printed > _LINE_EVERY_S:
                self._printed = now
                print(self.line(), file=sys.stderr, flush=True)

    def speed(self) -> str:
        """Clips and hours of audio per second of wall time."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        return f"{self._clips / elapsed_s:.0f} clips/s  {self._seconds / 3600 / elapsed_s:.2f} h/s"

    def line(self) -> str:
        """All of it as one line of a log."""
        left = self._expected - self._done - self._skipped
        rows_per_s = self._done / max(time.monotonic() - self._started, 1e-9)
        eta_s = left / rows_per_s if rows_per_s else 0
        rows = f"{self._done + self._skipped:,} of {self._expected:,} rows"
        return f"prepare: {rows}  {self.speed()}  ETA {eta_s / 60:.1f} min"
