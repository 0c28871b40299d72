"""The live view of a run on a terminal: a few lines that stay in place below the log."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hebrew_asr.watching.progress import Progress, clock, sparkline

_GUIDE_ADDED_GIB = "2 to 4"
"""What the guide says phase A adds on each of 8 A100s, where every GPU holds all optimizer states."""
_TREND_WIDTH = 12
_SHOWN = 2
"""Clips of the last evaluation."""


class LogConsole(Console):
    """Writes the log and the view. The cursor stays visible: a run that is killed must leave a usable terminal."""

    def show_cursor(self, show: bool = True) -> bool:
        """Whether anything was changed: never."""
        return False


def on_a_line(transcript: str) -> str:
    """A transcript as a terminal can show it: no line ends, tabs or other characters that would move the cursor."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", transcript)


def view(progress: Progress, doing: str) -> RenderableType:
    """The view; ``doing``: what is under way besides steps, or nothing."""
    course = progress.course
    step = progress.step.step if progress.step else course.done_steps
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    bar = ProgressBar(course.last_step, step)
    head.add_row(Text(f"{step / course.last_step:3.0%} {_place(progress, step)}", "bold"), bar)
    rows = [
        Text.assemble((f"{name:<7}", "cyan"), text, no_wrap=True, overflow="ellipsis")
        for name, text in _rows(progress, doing)
    ]
    return Group(head, *rows)


def lines(progress: Progress) -> str:
    """The view's rows in one line of a log, without those that records have lines for."""
    shown = dict(_rows(progress, ""))
    return " | ".join(
        f"{name} {shown[name]}" for name in ("loss", "speed", "memory", "WER", "left", "cost") if name in shown
    )


def _place(progress: Progress, step: int) -> str:
    course, record = progress.course, progress.step
    where = f"step {step:,} of {course.last_step:,}"
    return where if record is None else f"phase {record.phase}, epoch {record.epoch} of {course.recipe.epochs}, {where}"


def _rows(progress: Progress, doing: str) -> Iterator[tuple[str, str]]:
    record = progress.step
    if doing:
        yield "now", doing
    if record is not None:
        yield "loss", _loss(progress, record.loss)
        yield "speed", _speed(progress)
        yield "rates", "  ".join(f"{group} {rate:.1e}" for group, rate in record.lr.items())
    if progress.memory_gib:
        yield "memory", _memory(progress.memory_gib)
    if progress.rates:
        yield "WER", _wer(progress)
    for sample in progress.evaluation.heard[:_SHOWN] if progress.evaluation else []:
        yield "said", on_a_line(sample.reference)
        yield "heard", on_a_line(sample.hypothesis) or "(nothing)"
    yield "left", _left(progress)
    if progress.cost is not None:
        yield "cost", f"{progress.cost:.2f} so far"


def _loss(progress: Progress, loss: float) -> str:
    trend = progress.loss_trend
    if trend is None:
        return f"{loss:.3f}"
    now, before, count = trend
    way = "falling" if now < before else "rising" if now > before else "level"
    return f"{loss:.3f}, {way}: {now:.3f} over {count} steps, {before:.3f} over the {count} before"


def _speed(progress: Progress) -> str:
    record, pace, rate = progress.step, progress.step_s, progress.clips_per_s
    assert record is not None
    if pace is None or rate is None:
        return f"{record.step_s:.2f} s for the first step, which may compile"
    wait = "" if record.data_wait_s is None else f", {record.data_wait_s / record.step_s:.0%} of it waiting for data"
    return f"{rate:,.0f} clips/s, {pace:.2f} s per step{wait}"


def _memory(by_phase: dict[str, float]) -> str:
    """Peak memory of the fullest GPU, and what the last phase added to the one before."""
    *before, (name, now) = by_phase.items()
    added = ""
    if before:
        change = f"{now - before[-1][1]:+.1f} GiB since phase {before[-1][0]}"
        added = f", {change} (the guide, unsharded: +{_GUIDE_ADDED_GIB} GB)"
    return f"{now:.1f} GiB on the fullest GPU in phase {name}{added}"


def _wer(progress: Progress) -> str:
    step, rate = progress.rates[-1]
    best = progress.best_rate
    before = f", was {progress.rates[-2][1]:.1%}" if len(progress.rates) > 1 else ""
    lowest = "" if best is None else f"; best {best[1]:.1%} after step {best[0]:,}"
    trend = f"  {sparkline([rate for _, rate in progress.rates], _TREND_WIDTH)}" if before else ""
    return f"{rate:.1%} after step {step:,}{before}{lowest}{trend}"


def _left(progress: Progress) -> str:
    evaluation, end = progress.seconds_to_evaluation(), progress.seconds_to_end()
    parts = [] if evaluation is None else [f"evaluation in {clock(evaluation)}"]
    parts += ["unknown until steps are timed"] if end is None else [f"end in {clock(end)}"]
    return f"{', '.join(parts)}; {clock(progress.seconds)} so far"
