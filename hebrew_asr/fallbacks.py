"""Slower ways that are taken because a faster one failed: each is a warning at once, and kept for the run's records.

Any room may note one. Training takes them from here into ``metrics.jsonl`` and ``summary.json``; commands that keep no
records leave it at the warning.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from hebrew_asr.errors import on_one_line


@dataclass(frozen=True)
class Fallback:
    """A slower way that is taken."""

    name: str
    """What is done in the slower way, and how much slower that is."""
    reason: str
    """What the error said, beginning with its type."""


_noted: dict[Fallback, bool] = {}
"""In the order in which they came; whether each was taken from here."""


def note_fallback(name: str, error: BaseException | str) -> None:
    """Warn that ``name`` is done in a slower way because of ``error``; of the same two, one is kept in a process."""
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {on_one_line(error)}"
    _noted.setdefault(Fallback(name, reason), False)
    warnings.warn(f"{name}: {reason}", RuntimeWarning, stacklevel=3)


def any_new_fallback() -> bool:
    """Whether :func:`take_fallbacks` would give any."""
    return not all(_noted.values())


def take_fallbacks() -> list[Fallback]:
    """Those that were not taken yet."""
    new = [fallback for fallback, is_taken in _noted.items() if not is_taken]
    _noted.update(dict.fromkeys(new, True))
    return new
