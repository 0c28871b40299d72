"""From the lines of a listing to rows: where the audio lies, which stretch of it, who speaks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hebrew_asr.audio.named import forget_names, located
from hebrew_asr.audio.times import not_seconds
from hebrew_asr.errors import DataError
from hebrew_asr.sources.columns import Place, choose_adapter
from hebrew_asr.sources.listings import TEXTS, TIMES, Line, read_listing, unknown_columns
from hebrew_asr.sources.rows import Row
from hebrew_asr.sources.walk import file_problem
from hebrew_asr.text.plain import words_alone
from hebrew_asr.text.prompt import parse_target
from hebrew_asr.text.values import number, seconds

_TWO_TEXTS = "listed with two texts"
_TEXT_FILE = re.compile(r"\S+\.(?:txt|srt|vtt|lab|json|textgrid|eaf)|.*[/\\].*\.(?:txt|srt|vtt|lab)", re.I)
_SPAN = ("start_s", "end_s", "duration_s", "duration")
_GROUPS = ("speaker", "session", "source", "episode")


def listed_rows(listing: Path) -> list[Row]:
    """A row for every line of a listing, the wrong ones with their problem; stretches of one file stand together.

    Raises:
        DataError: the listing cannot be read.
    """
    folder = listing.parent
    forget_names()
    lines = read_listing(listing, lambda value: located(value, folder).is_file())
    _require_columns(listing, lines)
    rows: dict[str, Row] = {}
    heard: dict[object, str] = {}  # a recording may be listed by several of its names
    for line in lines:
        row = _row_of(line, listing)
        first = row.id if line.values.get("id") or not row.audio else heard.setdefault((row.audio, row.span_s), row.id)
        if before := rows.get(row.id) or rows.get(first):
            row = _again(row, before, line, listing)
            if row.problem and row.problem[0] == _TWO_TEXTS:
                rows[before.id] = replace(before, problem=before.problem or row.problem)
        rows[row.id] = row
    _require_seconds(listing, lines, rows.values())
    return in_stretches(_without_constant_source(rows.values()))


def in_stretches(rows: Iterable[Row]) -> list[Row]:
    """The rows in their order, but those of one file in a row from its first on: it is decoded once for all of them."""
    ordered = list(rows)
    first: dict[bytes | str, int] = {}
    for place, row in enumerate(ordered):
        if row.span_s:
            first.setdefault(row.audio, place)
    places = sorted(range(len(ordered)), key=lambda at: (first.get(ordered[at].audio, at), at))
    return [ordered[place] for place in places]


def _require_columns(listing: Path, lines: list[Line]) -> None:
    known = {name for line in lines for name in line.values}
    if not lines:
        raise DataError(f"listing {listing} holds no rows")
    if "audio" not in known or known.isdisjoint(TEXTS):
        wrong = "; ".join(f"{line.where}: {line.problem}" for line in lines[:3] if line.problem)
        raise DataError((wrong and f"listing {listing}: {wrong}") or unknown_columns(listing, sorted(known)))
    times = sorted(name for name in known if TIMES.fullmatch(re.sub(r"\W+", "_", name).strip("_")))
    if times and known.isdisjoint(("start_s", "end_s")):  # else each row would have all of its recording
        raise DataError(f"listing {listing}: are {' and '.join(times)} times? Call them start and end, in seconds")


def _require_seconds(listing: Path, lines: list[Line], rows: Iterable[Row]) -> None:
    spans = ((str(row.audio), row.span_s[1] or row.span_s[0]) for row in rows if row.span_s and not row.problem)
    if (found := not_seconds(spans)) is not None:
        columns = dict.fromkeys(line.called(name) for line in lines for name in _SPAN if name in line.values)
        raise DataError(f"listing {listing}: {found[0]}, as if {' and '.join(columns)} were {found[1]}: write seconds")


def _row_of(line: Line, listing: Path) -> Row:
    place = f"{listing.name}, {line.where}"
    if line.problem:
        return Row(place, "", "", problem=("malformed line", f"{place}: {line.problem}"))
    values = line.values
    audio = values.get("audio")
    audio = audio.get("path") if isinstance(audio, dict) else audio
    if not isinstance(audio, str) or not audio.strip():
        return Row(place, "", "", problem=("malformed line", f"{place}: no path of a recording"))
    path = located(audio.strip(), listing.parent)
    identity = str(values["id"]) if values.get("id") not in (None, "") else audio.strip()
    try:
        span_s = _span_of(line)
    except ValueError as error:
        return Row(identity, "", str(path), problem=("malformed times", f"{place}: {error}"))
    if span_s and values.get("id") in (None, ""):
        identity = f"{identity}@{span_s[0]:g}"
    stated_s = None if span_s else number(values.get("duration_s") or values.get("duration"))
    values = values | {"audio": str(path), "duration_s": stated_s}
    present = [name for name in TEXTS if values.get(name) not in (None, "")]
    if not present:
        return Row(identity, "", str(path), problem=("no text", place))
    odd = next((name for name in present if isinstance(values[name], bool | list | dict)), None)
    if odd:
        problem = "malformed line", f"{place}: its {odd} is {str(values[odd])[:80]}, no text"
        return Row(identity, "", str(path), problem=problem)
    file = next((values[name] for name in present if _TEXT_FILE.fullmatch(str(values[name]).strip())), None)
    if file:
        detail = f"{place}: it has the name of a file, {file}: write what is said there into the table"
        return Row(identity, "", str(path), problem=("no text", detail))
    row = choose_adapter(values, where=place).convert(values, Place(identity, listing.parent))
    groups = [*row.groups, *(f"{kind}:{values[kind]}" for kind in _GROUPS if values.get(kind) not in (None, ""))]
    groups += [f"recording:{audio.strip()}"] if span_s or row.timed else []
    return replace(
        row,
        id=row.id if "uuid" in values else identity,
        # The official fine-tuning schema wraps the transcript; unwrapped here, wrapped again when written.
        text=words_alone(parse_target(row.text)[1]),
        groups=tuple(dict.fromkeys(groups)),
        span_s=span_s,
        states_all=not span_s,
        problem=row.problem or file_problem(path),
    )


def _again(row: Row, before: Row, line: Line, listing: Path) -> Row:
    """A row whose id was listed before: of one recording it is dropped, of another one it gets an id of its own."""
    identity, problem = f"{row.id} ({listing.name}, {line.where})", row.problem
    disputed = before.problem is not None and before.problem[0] == _TWO_TEXTS
    if (row.audio, row.span_s) == (before.audio, before.span_s) and (disputed or problem == before.problem):
        reason = _TWO_TEXTS if disputed or row.text != before.text else "listed twice"
        problem = problem or (reason, f"{line.where}: {row.id!r} was listed before")
    return replace(row, id=identity, problem=problem)


def _span_of(line: Line) -> tuple[float, float | None] | None:
    """The stretch that a line names by offset and duration, as NeMo does, or by start and end; None for all of it.

    Raises:
        ValueError: a time is no number, or they run backwards.
    """
    start_s, end_s = _time(line, "start_s"), _time(line, "end_s")
    if start_s is None and end_s is None:
        return None
    start_s = start_s or 0.0
    if end_s is None and (lasts_s := _time(line, "duration_s", "duration")) is not None:
        end_s = start_s + lasts_s
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(f"from {start_s:g} s to {'its end' if end_s is None else f'{end_s:g} s'}")
    return start_s, end_s


def _time(line: Line, *names: str) -> float | None:
    """Of the first of these columns that holds anything."""
    for name in names:
        if (value := line.values.get(name)) not in (None, ""):
            try:
                return seconds(value)
            except ValueError:
                raise ValueError(f"{line.called(name)} is {str(value)[:80]!r}") from None
    return None


def _without_constant_source(rows: Iterable[Row]) -> list[Row]:
    """A source that all rows share says nothing about what belongs together."""
    rows = list(rows)
    sources = {group for row in rows for group in row.groups if group.startswith("source:")}
    if len(sources) != 1 or len(rows) == 1:
        return rows
    return [replace(row, groups=tuple(group for group in row.groups if group not in sources)) for row in rows]
