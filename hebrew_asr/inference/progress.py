"""A bar of the speech that is decoded, with the real-time factor, where a person looks at the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hebrew_asr.audio.decode import quiet_decoders
from hebrew_asr.streams import can_redraw


class SoundProgress:
    """What :func:`sound_progress` gives."""

    def __init__(self, bar: Progress, total_s: float | None):
        """``total_s``: seconds of sound that are to be decoded; None if that is not known."""
        self._bar, self._started, self._done_s = bar, time.monotonic(), 0.0
        self._task = bar.add_task("decoding", total=total_s, pace="")

    def add(self, seconds: float) -> None:
        """So much speech more is decoded."""
        self._done_s += seconds
        self._bar.update(self._task, advance=seconds, pace=self.pace(self._done_s, "speech"))

    def pace(self, seconds: float, kind: str) -> str:
        """So much sound of some kind, and how fast it was done with."""
        factor = seconds / max(time.monotonic() - self._started, 1e-9)
        sound = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
        return f"{sound} of {kind}, {factor:.1f} × real time"

    def tell(self, text: str) -> None:
        """A line on its own, above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write(self, text: str) -> None:
        """To standard output as it is, wherever that goes; the bar makes way."""
        self._bar.stop()
        print(text, end="", flush=True)
        self._bar.start()


@contextmanager
def loading() -> Iterator[None]:
    """Says on a terminal what takes the seconds, or minutes, before the first sound."""
    with Console(stderr=True).status("loading the model") if can_redraw(sys.stderr) else nullcontext():
        yield


@contextmanager
def sound_progress(total_s: float | None) -> Iterator[SoundProgress]:
    """A bar on standard error, where decoders write nothing meanwhile; no bar where no terminal can draw one.

    Unless forbidden, rich prints what is written to standard output where its bar is: on standard error.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"), TimeRemainingColumn())
    drawn = can_redraw(sys.stderr)
    bar = Progress(*columns, console=console, disable=not drawn, transient=True, redirect_stdout=False)
    with quiet_decoders(), bar:
        yield SoundProgress(bar, total_s)
