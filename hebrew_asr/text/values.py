"""What values mean that may have gone through a text: in tables, a number or a check-box is often written out."""

from __future__ import annotations

import ast
import json
import math
from typing import Any


def number(value: Any) -> float | None:
    """A finite number, perhaps written as a text; None for anything else."""
    try:
        found = float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def seconds(value: Any) -> float:
    """Of a time that is a number, or hours, minutes and seconds with colons.

    Raises:
        ValueError: it is neither.
    """
    parts = str(value).replace(",", ".").split(":")
    found = number(sum(float(part) * 60**place for place, part in enumerate(reversed(parts))))
    if found is None or len(parts) > 3:  # a fourth part counts frames
        raise ValueError(f"{value!r} is no time")
    return found


def unquoted(field: str) -> str:
    """What a field of a table says in which a quotation mark is a letter like any other.

    Excel and csv writers put one that holds such marks into two more, and double those: ``"ד""ר כהן"`` is ד"ר כהן.
    """
    inner = field[1:-1]
    is_written_so = len(field) > 2 and field[0] == field[-1] == '"' and '"' in inner
    return inner.replace('""', '"') if is_written_so and '"' not in inner.replace('""', "") else field


def is_true(value: Any) -> bool:
    """Whether a check-box is ticked."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "1.0", "yes", "t", "y")
    return bool(value)


def read_out(value: Any) -> Any:
    """What a text says as JSON or as Python; None where it is blank. Any other value, and any other text, is itself.

    Twice, since a record that goes through JSON twice holds a text that is JSON.
    """
    for _ in range(2):
        value = _read_once(value) if isinstance(value, str | bytes) else value
    return value


def _read_once(written: str | bytes) -> Any:
    try:
        text = written.decode() if isinstance(written, bytes) else written
    except UnicodeDecodeError:
        return written
    if not text.strip():
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return written
