"""The run's records as charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from hebrew_asr.pages.figures import COLORS, Axis, Chart, Point, Series, Timeline, fitting_axis, linear_axis
from hebrew_asr.pages.words import percent, quantity, scientific, whole_percent
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.records import MachineRecord, TrainRecord

_MAX_POINTS = 180
_RATE_CEILING = 1.25
FULL_SPLIT = "eval"
_MACHINES = (
    ("GPU memory", "GiB, mean and range of ranks", {"tensors": "memory_gib", "held by PyTorch": "reserved_gib"}),
    ("GPU power", "W, mean and range of ranks", {"power": "power_w"}),
    ("GPU utilization", "percent, mean and range of ranks", {"a kernel runs": "utilization_percent"}),
    ("Host memory", "GiB, mean and range of ranks", {"of a rank's process": "host_gib"}),
)


def timeline(run: RunHistory) -> Timeline:
    """Phases that were reached and checkpoints; a phase starts where the schedule says, or else at its first step."""
    names = [str(phase.get("name")) for phase in run.recipe.get("phases", [])]
    starts = dict(zip(names, run.facts.get("phase_starts", []), strict=False))
    for step in run.steps:
        starts.setdefault(step.phase, step.step - 1)
    reached = sorted(((start, name) for name, start in starts.items() if start == 0 or start < run.last_step))
    return Timeline(run.last_step, [(name, start) for start, name in reached], [c.step for c in run.checkpoints])


def group_colors(run: RunHistory) -> dict[str, int]:
    """One color for each module group, in the order in which they join."""
    planned = [group for phase in run.recipe.get("phases", []) for group in phase.get("learning_rates", {})]
    return {
        group: index for index, group in enumerate(dict.fromkeys([*planned, *(g for s in run.steps for g in s.lr)]))
    }


def charts(run: RunHistory) -> list[Chart]:
    """All charts for which there is something to draw."""
    marks = timeline(run)
    made: list[Chart | None] = [
        _rates(run, marks),
        _by_set(run, marks),
        _errors(run, marks),
        _loss(run, marks),
        _grad_norm(run, marks),
        _learning_rates(run, marks),
        _throughput(run, marks),
    ]
    return [*(chart for chart in made if chart is not None), *_machine_charts(run, marks)]


def _buckets(steps: Sequence[TrainRecord]) -> list[list[TrainRecord]]:
    """Consecutive steps in groups of a size, never across a change of phase, so that a jump there stays sharp."""
    size = math.ceil(len(steps) / _MAX_POINTS)
    buckets: list[list[TrainRecord]] = []
    for _, same_phase in groupby(steps, key=lambda step: step.phase):
        members = list(same_phase)
        buckets += [members[start : start + size] for start in range(0, len(members), size)]
    return buckets


def _points(
    steps: Sequence[TrainRecord], value: Callable[[TrainRecord], float], total: Callable[[Sequence[TrainRecord]], float]
) -> list[Point]:
    """One point a bucket: ``total`` of it, with the range of ``value`` over its steps."""
    points = []
    for bucket in _buckets(steps):
        first, last = bucket[0].step, bucket[-1].step
        if len(bucket) == 1:
            points.append(Point(first, value(bucket[0]), f"step {first:,}"))
            continue
        values = [value(step) for step in bucket]
        label = f"steps {first:,}–{last:,}"
        points.append(Point((first + last) / 2, total(bucket), label, min(values), max(values)))
    return points


def _averaged(steps: Sequence[TrainRecord], value: Callable[[TrainRecord], float]) -> list[Point]:
    return _points(steps, value, lambda bucket: sum(map(value, bucket)) / len(bucket))


def _drawn(points: Sequence[Point]) -> list[float]:
    return [value for point in points for value in (point.value, point.low, point.high) if value is not None]


def _how_averaged(points: Sequence[Point], steps: Sequence[TrainRecord]) -> list[str]:
    if len(points) == len(steps) or not points:
        return []
    return [f"Line: means of {math.ceil(len(steps) / _MAX_POINTS)} steps; band: lowest to highest of them."]


def _loss(run: RunHistory, marks: Timeline) -> Chart | None:
    steps = [step for step in run.steps if math.isfinite(step.loss)]
    points = _averaged(steps, lambda step: step.loss)
    series = Series("training loss", points, 0)
    return _line_chart("Loss", "nats per supervised token", series, steps, marks, fitting_axis)


def _grad_norm(run: RunHistory, marks: Timeline) -> Chart | None:
    norms = {s.step: s.grad_norm for s in run.steps if s.grad_norm is not None and math.isfinite(s.grad_norm)}
    steps = [step for step in run.steps if step.step in norms]
    series = Series("before clipping", _averaged(steps, lambda step: norms[step.step]), 1)
    limit = run.recipe.get("optimizer", {}).get("clip_grad_norm")
    level = (float(limit), f"clipped to {limit:g}") if limit else None
    return _line_chart("Gradient norm", "global L2 norm", series, steps, marks, fitting_axis, level)


def _line_chart(
    title: str,
    unit: str,
    series: Series,
    steps: Sequence[TrainRecord],
    marks: Timeline,
    axis: Callable[..., Axis],
    level: tuple[float, str] | None = None,
) -> Chart | None:
    """One line over ``steps``; None without points."""
    if not series.points:
        return None
    scale, notes = axis(_drawn(series.points), quantity), _how_averaged(series.points, steps)
    return Chart(title, unit, [series], scale, marks, level, notes=notes)


def _learning_rates(run: RunHistory, marks: Timeline) -> Chart | None:
    """A line for each module group; groups that never differ share one."""
    lines: list[tuple[list[str], list[Point], int]] = []
    for group, color in group_colors(run).items():
        steps = [step for step in run.steps if group in step.lr]
        points = _averaged(steps, lambda step, group=group: step.lr[group])
        twin = next((names for names, other, _ in lines if other == points), None)
        if twin is not None:
            twin.append(group)
        elif points:
            lines.append(([group], points, color))
    if not lines:
        return None
    series = [
        Series(", ".join(names), [Point(p.step, p.value, p.label) for p in points], color, dashed=True)
        for names, points, color in lines
    ]
    axis = linear_axis([value for _, points, _ in lines for value in _drawn(points)], scientific)
    return Chart("Learning rate", "by module group", series, axis, marks)


def _throughput(run: RunHistory, marks: Timeline) -> Chart | None:
    steps = [step for step in run.steps if step.step_s > 0]
    points = _points(
        steps,
        lambda step: step.clips / step.step_s,
        lambda bucket: sum(step.clips for step in bucket) / sum(step.step_s for step in bucket),
    )
    return _line_chart("Throughput", "clips per second", Series("clips trained", points, 2), steps, marks, linear_axis)


def _rates(run: RunHistory, marks: Timeline) -> Chart | None:
    if not run.evaluations:
        return None
    labels = [f"step {record.step:,}, {record.split}" for record in run.evaluations]
    filled = [record.split == FULL_SPLIT for record in run.evaluations]
    series = []
    for name, color in (("WER", 0), ("CER", 1)):
        rates = [getattr(record, name.lower()) for record in run.evaluations]
        points = [Point(r.step, rate, label) for r, rate, label in zip(run.evaluations, rates, labels, strict=True)]
        series.append(Series(name, points, color, dots=filled))
    highest = [rate for record in run.evaluations for rate in (record.wer, record.cer)]
    axis = fitting_axis(highest, percent, ticks=whole_percent, ceiling=_RATE_CEILING)
    notes = ["Filled: the whole eval split; hollow: its sample."] if len(set(filled)) > 1 else []
    modes = ", ".join(dict.fromkeys(record.wer_mode for record in run.evaluations))
    return Chart("WER and CER", f"{modes} normalizer", series, axis, marks, notes=notes)


def _by_set(run: RunHistory, marks: Timeline) -> Chart | None:
    """WER of each data set; None where there is but one, or more than colors tell apart."""
    held = [(record, record.wer_by_set) for record in run.evaluations if record.wer_by_set]
    names = sorted({name for _, rates in held for name in rates})
    if not 1 < len(names) <= COLORS:
        return None
    series = []
    for color, name in enumerate(names):
        given = [(record, rates[name]) for record, rates in held if name in rates]
        points = [Point(record.step, rate, f"step {record.step:,}, {record.split}") for record, rate in given]
        series.append(Series(name, points, color, dots=[record.split == FULL_SPLIT for record, _ in given]))
    highest = [rate for _, rates in held for rate in rates.values()]
    axis = fitting_axis(highest, percent, ticks=whole_percent, ceiling=_RATE_CEILING)
    return Chart("WER by data set", "of its evaluation clips", series, axis, marks)


def _errors(run: RunHistory, marks: Timeline) -> Chart | None:
    """What the errors are, whatever their number: that is the chart of rates."""
    if not run.evaluations:
        return None
    series = []
    for kind, color in (("substitutions", 1), ("deletions", 0), ("insertions", 3)):
        points = []
        for record in run.evaluations:
            number, edits = getattr(record, kind), record.substitutions + record.deletions + record.insertions
            share = number / max(edits, 1)
            text = f"{percent(share)} ({number:,})"
            points.append(Point(record.step, share, f"step {record.step:,}, {record.split}", text=text))
        series.append(Series(kind, points, color))
    axis = linear_axis([], percent, ticks=whole_percent)
    return Chart("Errors by kind", "share of all word errors", series, axis, marks, stacked=True)


def _machine_charts(run: RunHistory, marks: Timeline) -> list[Chart]:
    """What the run takes of its machines, as far as there are records: memory, power and utilization."""
    made = []
    for title, unit, fields in _MACHINES:
        series = [
            Series(name, _of_ranks(run.machines, field), color)
            for color, (name, field) in enumerate(fields.items())
            if any(getattr(record, field) for record in run.machines)
        ]
        if series:
            highest = [point.high or point.value for line in series for point in line.points]
            made.append(Chart(title, unit, series, linear_axis(highest, quantity), marks))
    return made


def _of_ranks(records: Sequence[MachineRecord], field: str) -> list[Point]:
    """One for each record, or for several records in a row."""
    given = [(record.step, getattr(record, field)) for record in records if getattr(record, field)]
    size = max(1, math.ceil(len(given) / _MAX_POINTS))
    points = []
    for start in range(0, len(given), size):
        group = given[start : start + size]
        values = [value for _, of_ranks in group for value in of_ranks]
        first, last = group[0][0], group[-1][0]
        label = f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"
        points.append(Point((first + last) / 2, sum(values) / len(values), label, min(values), max(values)))
    return points
