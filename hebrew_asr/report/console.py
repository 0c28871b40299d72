"""What a person sees of a running training: a live bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hebrew_asr.logs import log, log_line
from hebrew_asr.report.records import CheckpointRecord, EvalRecord, FaultRecord, PhaseRecord, Record, TrainRecord


class Console:
    """A tracker sink that prints. Phase changes, evaluations and checkpoints are lines of their own either way."""

    def __init__(self, total_steps: int, done_steps: int, *, line_every_s: float = 15.0):
        """``done_steps``: steps of earlier sessions; ``line_every_s``: pace of plain lines."""
        self._console = RichConsole(highlight=False)
        self._total, self._first = total_steps, done_steps
        self._started = self._last_line = time.monotonic()
        self._line_every_s = line_every_s
        self._wer: float | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=14), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting", total=total_steps, completed=done_steps)
            self._bar.start()

    def say(self, text: str) -> None:
        """Log a line; on a terminal, above the bar."""
        if self._bar is None:
            log.info(text)
        else:
            self._console.print(log_line(text), markup=False, soft_wrap=True)

    def write(self, record: Record) -> None:
        """Show a record."""
        getattr(self, f"_{record.event}")(record)

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _train(self, record: TrainRecord) -> None:
        now = time.monotonic()
        pace_s = (now - self._started) / max(1, record.step - self._first)
        wer = "–" if self._wer is None else f"{self._wer:.1%}"
        clips_per_s, eta = record.clips / record.step_s, _clock(pace_s * (self._total - record.step))
        if self._bar is not None:  # fits beside the bar on 80 columns
            text = f"{record.phase} loss {record.loss:.3f} {clips_per_s:.0f}/s WER {wer} ETA {eta}"
            highest = max(record.lr.values())
            self._bar.update(self._task, completed=record.step, description=f"{text} lr {highest:.0e}")
        elif now - self._last_line >= self._line_every_s or record.step == self._total:
            self._last_line = now
            rates = " ".join(f"{group} {rate:.1e}" for group, rate in record.lr.items())
            self.say(
                f"step {record.step}/{self._total} | epoch {record.epoch} | phase {record.phase} "
                f"loss {record.loss:.3f} | {clips_per_s:.0f} clips/s | WER {wer} | ETA {eta} | lr {rates}"
            )

    def _eval(self, record: EvalRecord) -> None:
        self._wer = record.wer
        self.say(
            f"step {record.step}: WER {record.wer:.1%} CER {record.cer:.1%} ({record.wer_mode}) on "
            f"{record.clips} clips of {record.split}: {record.substitutions} substitutions, "
            f"{record.deletions} deletions, {record.insertions} insertions in {record.words} words"
        )

    def _phase(self, record: PhaseRecord) -> None:
        self.say(
            f"step {record.step}: phase {record.name} proved: {record.trainable:,} weights are in the "
            f"optimizer once, got their gradient and AdamW's step; {record.frozen:,} stayed bit-equal. Of "
            f"{record.compared:,} looked at one by one {record.moved:,} moved, and all that had to"
        )

    def _fault(self, record: FaultRecord) -> None:
        if record.kind == "unreadable":
            counted = "counted as not heard" if record.split else "skipped"
            self.say(f"step {record.step}: {counted}: {'; '.join(record.reasons)}")
        elif record.kind == "damaged checkpoint":
            self.say(f"warning: going on from step {record.step}, as {'; '.join(record.reasons)}")
        elif record.kind == "checkpoint":
            self.say(f"step {record.step}: no checkpoint could be written: {'; '.join(record.reasons)}")
        elif record.kind == "final model":
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

    def _checkpoint(self, record: CheckpointRecord) -> None:
        self.say(f"step {record.step}: checkpoint {record.path}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
