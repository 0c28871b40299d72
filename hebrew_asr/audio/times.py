"""Whether times that somebody wrote down can be the seconds of recordings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median

from hebrew_asr.audio.decode import duration_s
from hebrew_asr.errors import HebrewASRError

_LOOKED_AT = 5
"""Recordings: to learn how long one lasts may take as long as to decode it."""
_TOO_LATE, _TOO_LATE_FOR_MS = 10.0, 1500.0
"""Times as long as a recording. Its end is 1000 of them in ms, rounding aside, and 8000 or more in samples."""


def not_seconds(ends_s: Iterable[tuple[str, float]]) -> tuple[str, str] | None:
    """What shows that times are in another unit, and which is likely; None where they may be seconds.

    Most are far behind the ends of their recordings then. Single ones may be mistakes.

    Args:
        ends_s: paths of recordings, each with the end of one of its stretches.
    """
    ends_of: dict[str, list[float]] = defaultdict(list)
    for path, end_s in ends_s:
        ends_of[path].append(end_s)
    found = []
    for path, ends in islice(ends_of.items(), _LOOKED_AT):
        with suppress(HebrewASRError, ZeroDivisionError):  # told of each row, where it is decoded
            lasts_s = duration_s(path)
            found += [(end_s / lasts_s, end_s, lasts_s, path) for end_s in ends]
    if not found or median(share for share, *_ in found) < _TOO_LATE:
        return None
    share, end_s, lasts_s, path = max(found)
    what = f"a stretch would end at {end_s:,.0f} s, and {Path(path).name} lasts {lasts_s:,.1f} s"
    return what, "in milliseconds" if share < _TOO_LATE_FOR_MS else "counted in samples"
