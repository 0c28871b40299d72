"""What a person sees of a running training: on a terminal a view in place below the log, else lines alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.live import Live

from hebrew_asr.logs import log, log_line
from hebrew_asr.report import records
from hebrew_asr.report.guide import NOTE, RECIPE, guide_loss
from hebrew_asr.report.records import EvalRecord, TrainRecord
from hebrew_asr.streams import can_redraw
from hebrew_asr.units import count
from hebrew_asr.watching.panel import LogConsole, lines, on_a_line, view
from hebrew_asr.watching.progress import Course, Progress

_REDRAW_S = 1.0
_LONGEST_SHOWN = 160
"""Letters of a transcript in the log: a model that has learned nothing repeats itself up to its limit."""


def in_words(record: EvalRecord) -> str:
    """An evaluation in a line."""
    spread = ""
    if record.wer_low_95 is not None and record.wer_high_95 is not None:
        spread = f" (95 %: {record.wer_low_95:.1%} to {record.wer_high_95:.1%}, over {record.groups or 'the'} "
        spread += "groups)" if record.groups else "clips, too narrow where they share a speaker)"
    by_set = ", ".join(f"{name} {wer:.1%}" for name, wer in (record.wer_by_set or {}).items())
    return (
        f"step {record.step}: WER {record.wer:.1%}{spread} CER {record.cer:.1%} ({record.wer_mode}) on "
        f"{record.clips} clips of {record.split}: {count(record.substitutions, 'substitution')}, "
        f"{count(record.deletions, 'deletion')}, {count(record.insertions, 'insertion')} in {record.words} words"
        f"{by_set and f'; WER by data set: {by_set}'}"
    )


class Console:
    """A tracker sink that prints. Phase changes, evaluations and checkpoints are lines of their own either way."""

    def __init__(self, course: Course, *, line_every_s: float = 15.0):
        """``line_every_s``: pace of lines about steps, where there is no view."""
        self._progress, self._doing = Progress(course), ""
        self._taking = threading.Lock()
        """Held while a record is taken or a view made of them: the view is drawn by a thread of its own."""
        self._printing = threading.RLock()
        """Held while something is printed or drawn: each moves the cursor from where the other left it."""
        self._closed = threading.Event()
        self._last_line, self._line_every_s = time.monotonic(), line_every_s
        self._screen = LogConsole(highlight=False)
        self._live: Live | None = None
        if can_redraw(sys.stdout):
            self._live = Live(get_renderable=self._view, console=self._screen, auto_refresh=False)
            self._live.start()
            threading.Thread(target=self._redraw, name="view", daemon=True).start()

    def follow(self, course: Course) -> None:
        """Show how far it is on another course than the run's own."""
        with self._taking:
            self._progress.course = course

    def say(self, text: str) -> None:
        """Log a line; on a terminal, above the view."""
        with self._printing:
            if self._live is None:
                log.info(text)
            else:
                self._screen.print(log_line(text), markup=False, soft_wrap=True)

    def now(self, doing: str) -> None:
        """Show what takes long and is no step, until the next step or evaluation; a line where there is no view."""
        with self._taking:
            self._doing = doing
        if self._live is None:
            log.info(doing)

    def write(self, record: records.Record) -> None:
        """Show a record."""
        with self._taking:
            self._progress.take(record)
            if isinstance(record, (TrainRecord, EvalRecord)):
                self._doing = ""
        getattr(self, f"_{record.event}")(record)

    def close(self) -> None:
        """Leave the view as it is; what is printed later comes below it. May be called twice, and by any thread."""
        self._closed.set()
        with self._printing:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _redraw(self) -> None:
        while not self._closed.wait(_REDRAW_S):
            with self._printing:
                if self._live is not None:
                    self._live.refresh()

    def end(
        self, steps: int, seconds: float, run: Path, final: str, fallbacks: Sequence[dict[str, Any]], commands: str
    ) -> None:
        """Below the view, say what became of a run that is done.

        Args:
            steps: taken in all sessions.
            seconds: of all sessions.
            run: its directory.
            final: which model it made.
            fallbacks: what was slower than it could be: ``step`` and ``name`` of each.
            commands: what to do next, printed without time and rank, to be copied.
        """
        self.close()
        self.say(f"done: {steps} steps in {seconds:.0f} s; model in {run.resolve() / 'final'}: {final}")
        if self._progress.evaluation is not None:
            self.say(in_words(self._progress.evaluation))
        for fallback in fallbacks:
            self.say(f"slower than it could be since step {fallback['step']}: {fallback['name']}")
        with self._printing:
            self._screen.print(commands, markup=False, soft_wrap=True)

    def _view(self) -> RenderableType:
        with self._taking:
            return view(self._progress, self._doing)

    def _train(self, record: TrainRecord) -> None:
        now, course = time.monotonic(), self._progress.course
        told = guide_loss(record.step, course.last_step) if course.recipe.name == RECIPE else None
        if told is not None:
            self.say(f"step {record.step}: loss {record.loss:.3f} nats per token; the guide expects {told} ({NOTE})")
        if self._live is not None:
            return
        if now - self._last_line >= self._line_every_s or record.step == self._progress.course.last_step:
            self._last_line = now
            rates = " ".join(f"{group} {rate:.1e}" for group, rate in record.lr.items())
            place = (
                f"step {record.step}/{self._progress.course.last_step} | epoch {record.epoch} | phase {record.phase}"
            )
            self.say(f"{place} | {lines(self._progress)} | rates {rates}")

    def _machine(self, record: records.MachineRecord) -> None:
        """The line of a step tells it."""

    def _eval(self, record: EvalRecord) -> None:
        self.say(in_words(record))
        for sample in record.heard if self._live is None else []:  # else the view has them
            self.say(f"  said:  {on_a_line(sample.reference)}")
            heard = on_a_line(sample.hypothesis) or "(nothing)"
            self.say(f"  heard: {heard if len(heard) <= _LONGEST_SHOWN else f'{heard[:_LONGEST_SHOWN]}…'}")

    def _phase(self, record: records.PhaseRecord) -> None:
        self.say(
            f"step {record.step}: phase {record.name} proved: {record.trainable:,} weights are in the "
            f"optimizer once, got their gradient and AdamW's step; {record.frozen:,} stayed bit-equal. "
            f"{record.compared:,} were looked at one by one: {record.moved:,} moved, among them all that had to"
        )

    def _fault(self, record: records.FaultRecord) -> None:
        if record.kind == "unreadable":
            counted = "counted as not heard" if record.split else "skipped"
            self.say(f"step {record.step}: {counted}: {'; '.join(record.reasons)}")
        elif record.kind == "damaged checkpoint":
            self.say(f"warning: going on from step {record.step}, as {'; '.join(record.reasons)}")
        elif record.kind == "checkpoint":
            self.say(f"step {record.step}: no checkpoint could be written: {'; '.join(record.reasons)}")
        elif record.kind in ("final model", "report"):
            self.say(f"warning: {'; '.join(record.reasons)}")
        elif record.kind == "out-of-memory":
            ranks = ", ".join(map(str, record.ranks))
            self.say(
                f"step {record.step}: rank {ranks} ran out of device memory in {record.part}; "
                f"from here on {record.batching}"
            )
        elif record.kind == "fallback":
            ranks = ", ".join(map(str, record.ranks))
            self.say(f"step {record.step}: rank {ranks}: {record.name} ({record.reason})")
        else:
            clips = ", ".join(record.clips[:8])
            self.say(f"step {record.step}: skipped by all ranks, gradients were NaN or infinite (clips {clips}, …)")

    def _checkpoint(self, record: records.CheckpointRecord) -> None:
        self.say(f"step {record.step}: checkpoint {record.path}")
