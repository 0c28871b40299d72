"""The pictures of an audit, as inline SVG: histograms of both sides, and text length against duration.

Colors are classes that the page's style sheet fills in (``c1`` training, ``c2`` evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hebrew_asr.corpus.preparation.filters import FREE_SILENCE_S
from hebrew_asr.pages.figures import legend_key, round_steps
from hebrew_asr.pages.markup import Markup, element
from hebrew_asr.pages.words import percent, quantity

_WIDTH, _HEIGHT = 560, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 552, 14, 200
_FEWEST_BINS, _MOST_BINS = 12, 44
_SHADES = 6
_WAVE_POINTS, _WAVE_HEIGHT = 160, 40
_FEW = 25  # values, below which shares of them mean nothing


_BAR_KEY = element("rect", x=2, y=1, width=18, height=10, class_="bar c1")
_LINE_KEY = element("path", d="M1 9h8v-6h12", class_="line c2")
_MARK_KEY = element("path", d="M11 1v10", class_="line c2")


@dataclass(frozen=True)
class Scale:
    """A straight axis from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values inside the axis, about ``count`` of them."""
        return round_steps(self.low, self.high, count)


def histogram(title: str, unit: str, train: Sequence[float] | np.ndarray, held: Sequence[float] | np.ndarray) -> Markup:
    """Training as bars, evaluation as a line over them, each in shares of its own side; few values as a mark each.

    The axis, which counts in ``unit``, such as ``seconds``, ends at the 0.1 and 99.9 percentiles of all values; what
    lies beyond is counted in the first or last bar.
    """
    everything = np.concatenate([train, held])
    low, high = np.quantile(everything, (0.001, 0.999)).tolist()
    x = Scale(low, max(high, low + 1e-6), _LEFT, _RIGHT)
    bins = min(_MOST_BINS, max(_FEWEST_BINS, 2 * math.isqrt(len(everything))))
    edges = np.linspace(x.low, x.high, bins + 1)
    sides = (("train", train), ("eval", held if len(held) >= _FEW or not len(train) else ()))
    shares = {name: _shares(values, edges) for name, values in sides if len(values)}
    top = max(float(share.max()) for share in shares.values())
    y = Scale(0, top * 1.08 or 1, _BOTTOM, _TOP)
    drawn = [*_horizontal_grid(y), *_bars(shares.get("train"), edges, x, y)]
    if "eval" in shares:
        points = [(x(edges[0]), y(0.0))]
        for share, left, right in zip(shares["eval"], edges, edges[1:], strict=False):
            points += [(x(left), y(share)), (x(right), y(share))]
        drawn.append(element("path", d=_path([*points, (x(edges[-1]), y(0.0))]), class_="line c2"))
    drawn += _bottom_axis(x, unit)
    marked = len(held) > 0 and "eval" not in shares
    if marked:
        drawn += [element("path", d=f"M{x(value):.1f} {_BOTTOM + 1}v-16", class_="line c2") for value in held]
    keys = [("train", _BAR_KEY)] if "train" in shares else []
    keys += [("eval", _MARK_KEY if marked else _LINE_KEY)] if len(held) else []
    return _figure(title, unit, drawn, everything, keys)


def _shares(values: Sequence[float] | np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(len(values), 1)


def _bars(shares: np.ndarray | None, edges: np.ndarray, x: Scale, y: Scale) -> list[Markup]:
    if shares is None:
        return []
    return [
        element(
            "rect",
            x=x(left) + 0.5,
            y=y(share),
            width=x(right) - x(left) - 1,
            height=_BOTTOM - y(share),
            class_="bar c1",
        )
        for share, left, right in zip(shares, edges, edges[1:], strict=False)
        if share > 0
    ]


def _horizontal_grid(y: Scale) -> list[Markup]:
    drawn = []
    for tick in y.ticks(4):
        drawn.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        drawn.append(element("text", f"{100 * tick:.4g} %", x=_LEFT - 6, y=y(tick) + 4, text_anchor="end"))
    return drawn


def _bottom_axis(x: Scale, unit: str) -> list[Markup]:
    drawn = [element("line", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis")]
    for tick in x.ticks():
        drawn.append(element("line", x1=x(tick), x2=x(tick), y1=_BOTTOM, y2=_BOTTOM + 4, class_="axis"))
        drawn.append(element("text", f"{tick:.4g}", x=x(tick), y=_BOTTOM + 17, text_anchor="middle"))
    drawn.append(element("text", unit, x=_RIGHT, y=_BOTTOM + 33, text_anchor="end"))
    return drawn


def _figure(title: str, unit: str, drawn: list[Markup], values: np.ndarray, keys: list[tuple[str, Markup]]) -> Markup:
    low, middle, high = (quantity(float(v)) for v in np.quantile(values, [0.05, 0.5, 0.95]))
    label = f"{title}: median {middle} {unit}, nine in ten between {low} and {high}"
    legend = [element("li", legend_key(shape), side) for side, shape in keys]
    return element(
        "figure",
        element("div", element("h3", title), element("span", f"median {middle}", class_="at"), class_="heading"),
        element("svg", drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label),
        element(
            "figcaption", element("ul", legend), element("span", f"5 to 95 %: {low} to {high} {unit}", class_="note")
        ),
        class_="chart",
    )


def text_against_duration(
    durations: np.ndarray,
    lengths: np.ndarray,
    odd: Sequence[tuple[float, int]],
    limits: tuple[float, float] | None,
) -> Markup:
    """How many clips have which duration (s) and number of characters; odd ones circled.

    Args:
        limits: lowest and highest pace (characters per second) that preparation let through, drawn as lines.
    """
    x = Scale(0, float(durations.max()) * 1.02, _LEFT, _RIGHT)
    y = Scale(0, float(lengths.max()) * 1.05, _BOTTOM, _TOP)
    columns, rows = 64, 34
    counts, x_edges, y_edges = np.histogram2d(durations, lengths, (columns, rows), ((0, x.high), (0, y.high)))
    deepest = math.log1p(float(counts.max()))
    cells = []
    for column, row in zip(*np.nonzero(counts), strict=True):
        shade = math.ceil(_SHADES * math.log1p(counts[column, row]) / deepest)
        left, bottom = x(x_edges[column]), y(y_edges[row])
        size = {"width": x(x_edges[column + 1]) - left, "height": bottom - y(y_edges[row + 1])}
        cells.append(element("rect", x=left, y=y(y_edges[row + 1]), class_=f"bar c1 shade{shade}", **size))
    circles = [element("circle", cx=x(duration), cy=y(length), r=5, class_="ring") for duration, length in odd]
    grid = [element("text", f"{tick:.4g}", x=_LEFT - 6, y=y(tick) + 4, text_anchor="end") for tick in y.ticks(4)]
    lines = [_pace_line(x, y, limits[0], FREE_SILENCE_S), _pace_line(x, y, limits[1])] if limits else []
    label = "number of characters against duration; circles are the clips listed further down"
    body = [*grid, *cells, *lines, *circles, *_bottom_axis(x, "seconds")]
    return element(
        "figure",
        element(
            "div", element("h3", "Text against duration"), element("span", "characters", class_="at"), class_="heading"
        ),
        element("svg", body, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label),
        element(
            "figcaption",
            element("span", _pace_note(limits), class_="note"),
        ),
        class_="chart",
    )


def _pace_note(limits: tuple[float, float] | None) -> str:
    rings = "Darker: more clips. Rings: the odd ones below."
    return f"{rings} Dashed: the limits of preparation." if limits else rings


def _pace_line(x: Scale, y: Scale, pace: float, free_s: float = 0.0) -> Markup:
    """The line of one pace after ``free_s`` seconds, as far as it stays inside the picture."""
    end = min(x.high, free_s + y.high / max(pace, 1e-6))
    return element("line", x1=x(free_s), y1=y(0), x2=x(end), y2=y(pace * (end - free_s)), class_="switch")


def waveform(samples: np.ndarray) -> Markup:
    """The envelope of a clip: peaks of 160 stretches of it, mirrored. ``samples`` are within [-1, 1].

    Heights are compressed, so that ordinary speech fills the picture and a whisper is still seen.
    """
    peaks = [float(np.abs(stretch).max(initial=0)) ** 0.6 for stretch in np.array_split(samples, _WAVE_POINTS)]
    upper = [(i, _WAVE_HEIGHT * (1 - max(peak, 0.01)) / 2) for i, peak in enumerate(peaks)]
    lower = [(i, _WAVE_HEIGHT - y) for i, y in reversed(upper)]
    shape = element("path", d=_path([*upper, *lower]) + "Z", class_="bar c1")
    view = f"0 0 {_WAVE_POINTS - 1} {_WAVE_HEIGHT}"
    return element("svg", shape, viewBox=view, preserveAspectRatio="none", class_="wave", aria_hidden="true")


def share_bar(share: float) -> Markup:
    """A thin bar for a table cell; ``share`` is within [0, 1]."""
    bar = element("rect", width=f"{100 * share:.1f}%", height=8, rx=2, class_="bar c1")
    return element("svg", bar, width="100%", height=8, role="img", aria_label=percent(share))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
