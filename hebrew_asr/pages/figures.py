"""Charts against the optimizer step, as inline SVG. Knows nothing of training but phases and checkpoints on its axis.

Colors are classes (``c1`` … ``c6``) that the page's style sheet fills in, so that one drawing serves light and dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from hebrew_asr.pages.markup import Child, Markup, element, join

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 552, 22, 204
_LABEL_WIDTH = 60
"""Of a name of a phase, in the units of the drawing."""
COLORS = 6
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2", "1 2")

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a step, or the mean of several with their range."""

    step: float
    value: float
    label: str
    """The step or steps, in words."""
    low: float | None = None
    high: float | None = None
    text: str | None = None
    """What the read-out says instead of the formatted value."""


@dataclass(frozen=True)
class Series:
    """A named line, or in a stacked chart a named part of every bar."""

    name: str
    points: list[Point]
    color: int
    """From 0; taken modulo ``COLORS``."""
    dashed: bool = False
    dots: list[bool] | None = None
    """A dot at each point, filled or hollow; None for no dots."""

    @property
    def css(self) -> str:
        """Class that gives the color."""
        return f"c{self.color % COLORS + 1}"

    @property
    def dash(self) -> str | None:
        """Dash pattern, so that lines on top of one another stay visible and color is not all there is."""
        return _DASHES[self.color % len(_DASHES)] if self.dashed else None


@dataclass(frozen=True)
class Timeline:
    """What every chart of a run has in common."""

    last_step: int
    phases: list[tuple[str, int]]
    """Name and first step of each phase that was reached, in order."""
    checkpoints: list[int]

    def x(self, step: float) -> float:
        """Horizontal place of a step; a little room is left at both ends for dots and bars."""
        span = max(self.last_step, 1)
        return _LEFT + (_RIGHT - _LEFT) * (0.02 + 0.96 * step / span)


@dataclass(frozen=True)
class Axis:
    """The vertical axis."""

    low: float
    high: float
    format: Format
    """For values."""
    tick_format: Format
    log: bool = False

    def y(self, value: float) -> float:
        """Vertical place of a value; what lies beyond an end is drawn at that end."""
        scale = math.log if self.log else float
        share = (scale(min(max(value, self.low), self.high)) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return _BOTTOM - share * (_BOTTOM - _TOP)

    def ticks(self) -> list[float]:
        """Round values, some four to eight of them."""
        if not self.log:
            return round_steps(self.low, self.high, 5)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        decades = len(powers) - 1
        digits = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def linear_axis(
    values: Sequence[float], form: Format, *, ticks: Format | None = None, ceiling: float | None = None
) -> Axis:
    """From 0 to a little above the highest value, but not above ``ceiling``; to 1 without a value above 0."""
    top = max(values, default=0) * 1.06 or 1.0
    return Axis(0.0, min(top, ceiling) if ceiling else top, form, ticks or form)


def fitting_axis(
    values: Sequence[float], form: Format, *, ticks: Format | None = None, ceiling: float | None = None
) -> Axis:
    """Logarithmic if all values are above 0 and span much, or pass ``ceiling``; else as ``linear_axis``."""
    spans_much = bool(values) and (max(values) > 20 * min(values) or max(values) > (ceiling or math.inf))
    if not spans_much or min(values) <= 0:
        return linear_axis(values, form, ticks=ticks, ceiling=ceiling)
    return Axis(min(values) / 1.15, max(values) * 1.15, form, ticks or form, log=True)


def round_steps(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about ``count`` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class Chart:
    """One figure."""

    title: str
    unit: str
    series: list[Series]
    axis: Axis
    timeline: Timeline
    level: tuple[float, str] | None = None
    """A horizontal line and its name."""
    stacked: bool = False
    notes: list[str] = field(default_factory=list)

    def draw(self) -> Markup:
        """A ``figure`` with title, a legend that doubles as the read-out, and the drawing."""
        body = _bars(self) if self.stacked else [_line(index, self) for index in range(len(self.series))]
        top = f"{self.title} in {self.unit}, against the optimizer step"
        drawing = element(
            "svg", _phases(self.timeline), _grid(self), _level(self), body, _steps_axis(self.timeline), _cursor(),
            viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{top}: {self._in_words()}",
        )  # fmt: skip
        title = element("h3", self.title, " ", element("span", self.unit, ", log scale" if self.axis.log else ""))
        heading = element("div", title, element("span", "last", class_="at"), class_="heading")
        legend = element("ul", [_legend(series, self) for series in self.series], _level_key(self.level))
        caption = element("figcaption", heading, legend)
        place = {"data_low": self.timeline.x(0), "data_high": self.timeline.x(max(self.timeline.last_step, 1))}
        notes = element("div", [element("p", note) for note in self.notes], class_="note")
        return element(
            "figure", caption, drawing, notes,
            class_="chart", data_width=WIDTH, data_steps=max(self.timeline.last_step, 1), **place,
        )  # fmt: skip

    def _in_words(self) -> str:
        form = self.axis.format
        return "; ".join(
            f"{series.name} from {form(series.points[0].value)} to {form(series.points[-1].value)}"
            for series in self.series
            if series.points
        )


def legend_key(shape: Child) -> Markup:
    """How a series is drawn, beside its name in a legend; ``shape`` is of 22 × 12."""
    return element("svg", shape, viewBox="0 0 22 12", class_="key", aria_hidden="true")


def _legend(series: Series, chart: Chart) -> Markup:
    line = element("line", x1=1, x2=21, y1=6, y2=6, class_="line", stroke_dasharray=series.dash)
    dot = element("circle", cx=11, cy=6, r=3.5, class_="dot") if series.dots else None
    shape = element("rect", x=9, width=12, height=12, class_="bar") if chart.stacked else join(line, dot)
    key = legend_key(shape)
    form = chart.axis.format
    read = [[round(point.step, 1), point.label, point.text or form(point.value)] for point in series.points]
    widest = max((len(str(text)) for *_, text in read), default=0)
    last = element("b", read[-1][-1] if read else "", style=f"min-width:{widest}ch")
    return element(
        "li", key, f"{series.name} ", last,
        class_=series.css, data_read=json.dumps(read, ensure_ascii=False, separators=(",", ":")),
    )  # fmt: skip


def _text(x: float, y: float, *children: Child, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", *children, x=x, y=y, text_anchor=anchor, class_=class_)


def _phases(timeline: Timeline) -> Markup:
    """A band under every other phase, its name, and a line at each switch."""
    ends = [timeline.x(first) for _, first in timeline.phases[1:]] + [float(_RIGHT)]
    parts: list[Markup] = []
    start = float(_LEFT)
    for index, ((name, _), end) in enumerate(zip(timeline.phases, ends, strict=True)):
        if index % 2:
            parts.append(element("rect", x=start, y=_TOP, width=end - start, height=_BOTTOM - _TOP, class_="band"))
        if index:
            parts.append(element("line", x1=start, x2=start, y1=_TOP - 14, y2=_BOTTOM, class_="switch"))
        if end - start > _LABEL_WIDTH or index == len(ends) - 1:  # else the next name would lie on this one
            parts.append(_text(start + 5, _TOP - 5, f"phase {name}", class_="phase"))
        start = end
    return join(parts)


def _grid(chart: Chart) -> Markup:
    axis = chart.axis
    return join(
        [
            join(
                element("line", x1=_LEFT, x2=_RIGHT, y1=axis.y(tick), y2=axis.y(tick), class_="grid"),
                _text(_LEFT - 7, axis.y(tick) + 4, axis.tick_format(tick), anchor="end"),
            )
            for tick in axis.ticks()
        ]
    )


def _level(chart: Chart) -> Markup | None:
    """The horizontal line, if it lies inside the axis."""
    if chart.level is None or not chart.axis.low <= chart.level[0] <= chart.axis.high:
        return None
    y = chart.axis.y(chart.level[0])
    return element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="level")


def _level_key(level: tuple[float, str] | None) -> Markup | None:
    if level is None:
        return None
    line = element("line", x1=1, x2=21, y1=6, y2=6, class_="level")
    return element("li", legend_key(line), level[1])


def _steps_axis(timeline: Timeline) -> Markup:
    """The axis of steps; each checkpoint is a triangle under it."""
    ticks = [tick for tick in round_steps(0, max(timeline.last_step, 1), 8) if tick == int(tick)]
    marks = [
        element("path", d=f"M{timeline.x(step):.1f} {_BOTTOM + 2}l3 6h-6z", class_="checkpoint")
        for step in timeline.checkpoints
    ]
    return join(
        marks,
        element("line", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis"),
        [_text(timeline.x(tick), _BOTTOM + 21, f"{int(tick):,}", anchor="middle") for tick in ticks],
        _text((_LEFT + _RIGHT) / 2, HEIGHT - 6, "optimizer step", anchor="middle"),
    )


def _cursor() -> Markup:
    return element("line", y1=_TOP, y2=_BOTTOM, x1=0, x2=0, class_="cursor")


def _line(index: int, chart: Chart) -> Markup:
    series, axis, x = chart.series[index], chart.axis, chart.timeline.x
    places = [(x(point.step), axis.y(point.value)) for point in series.points]
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in places) if places else ""
    dots = []
    if series.dots:
        dots = [
            element("circle", cx=left, cy=top, r=3, class_="dot" if filled else "dot hollow")
            for (left, top), filled in zip(places, series.dots, strict=True)
        ]
    beyond = [_beyond(x(p.step), axis.format(p.value), index) for p in series.points if p.value > axis.high]
    line = element("path", d=path, class_="line", stroke_dasharray=series.dash)
    return element("g", _range(series, chart), line, dots, beyond, class_=series.css)


def _range(series: Series, chart: Chart) -> Markup | None:
    """The band from the lowest to the highest of the values behind each point."""
    rows = [
        (chart.timeline.x(point.step), chart.axis.y(point.low), chart.axis.y(point.high))
        for point in series.points
        if point.low is not None and point.high is not None
    ]
    if not rows:
        return None
    upper = [f"{left:.1f} {top:.1f}" for left, _, top in rows]
    lower = [f"{left:.1f} {bottom:.1f}" for left, bottom, _ in reversed(rows)]
    return element("path", d=f"M{'L'.join(upper + lower)}z", class_="range")


def _beyond(x: float, label: str, row: int) -> Markup:
    """A value above the axis: an arrow out of the top, with the value; series have their own row for it."""
    arrow = element("path", d=f"M{x:.1f} {_TOP - 1}l5 8h-10z", class_="beyond")
    return join(arrow, _text(x + 10, _TOP + 13 + 17 * row, label, class_="value"))


def _widths(centers: Sequence[float]) -> list[float]:
    """Bars of one width, but for those that would touch a neighbor."""
    gaps = [right - left for left, right in pairwise(centers)]
    usual = min(16.0, 0.6 * median(gaps)) if gaps else 16.0
    nearest = [min(pair) for pair in zip([usual * 2, *gaps], [*gaps, usual * 2], strict=True)]
    return [max(1.5, min(usual, 0.8 * gap)) for gap in nearest]


def _bars(chart: Chart) -> list[Markup]:
    """Every series stacked on the ones before, one bar a step; all have a point at each."""
    axis, timeline = chart.axis, chart.timeline
    centers = [timeline.x(point.step) for point in chart.series[0].points] if chart.series else []
    widths = _widths(centers)
    floor = [0.0] * len(centers)
    drawn: list[Markup] = []
    for series in chart.series:
        bars = []
        for index, (center, width, point) in enumerate(zip(centers, widths, series.points, strict=True)):
            bottom, top = axis.y(floor[index]), axis.y(floor[index] + point.value)
            floor[index] += point.value
            bars.append(element("rect", x=center - width / 2, y=top, width=width, height=bottom - top, class_="bar"))
        drawn.append(element("g", bars, class_=series.css))
    return drawn
