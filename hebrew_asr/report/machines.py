"""What a run takes of its machines, as charts: memory, power and utilization of its GPUs, memory of its ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hebrew_asr.pages.figures import Chart, Point, Series, Timeline, linear_axis
from hebrew_asr.pages.words import quantity
from hebrew_asr.report.gather import RunHistory
from hebrew_asr.report.records import MachineRecord

_MAX_POINTS = 180
_CHARTS = (
    ("GPU memory", "GiB, mean and range of ranks", {"tensors": "memory_gib", "held by PyTorch": "reserved_gib"}),
    ("GPU power", "W, mean and range of ranks", {"power": "power_w"}),
    ("GPU utilization", "percent, mean and range of ranks", {"a kernel runs": "utilization_percent"}),
    ("Host memory", "GiB, mean and range of ranks", {"of a rank's process": "host_gib"}),
)


def machine_charts(run: RunHistory, marks: Timeline) -> list[Chart]:
    """Those for which there are records."""
    made = []
    for title, unit, fields in _CHARTS:
        series = [
            Series(name, _points(run.machines, field), color)
            for color, (name, field) in enumerate(fields.items())
            if any(getattr(record, field) for record in run.machines)
        ]
        if series:
            highest = [point.high or point.value for line in series for point in line.points]
            made.append(Chart(title, unit, series, linear_axis(highest, quantity), marks))
    return made


def _points(records: Sequence[MachineRecord], field: str) -> list[Point]:
    """One for each record, or for several records in a row."""
    given = [(record.step, getattr(record, field)) for record in records if getattr(record, field)]
    size = max(1, math.ceil(len(given) / _MAX_POINTS))
    points = []
    for start in range(0, len(given), size):
        group = given[start : start + size]
        values = [value for _, of_ranks in group for value in of_ranks]
        first, last = group[0][0], group[-1][0]
        label = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        points.append(Point((first + last) / 2, sum(values) / len(values), label, min(values), max(values)))
    return points
