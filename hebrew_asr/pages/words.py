"""Numbers as a reader wants them. A narrow no-break space keeps a number and its unit on one line."""

from __future__ import annotations

import math

_NARROW = "\u202f"


def percent(rate: float, decimals: int | None = None) -> str:
    """``0.0432`` as ``4.3 %``; unless told, with none or two decimals where one says too much or too little."""
    value = 100 * rate
    if decimals is None:
        decimals = 0 if value == 0 or value >= 99.95 else 2 if value < 1 else 1
    return f"{value:,.{decimals}f}{_NARROW}%"


def whole_percent(rate: float) -> str:
    """``0.2`` as ``20 %``: for ticks, which are round."""
    return f"{100 * rate:.6g}{_NARROW}%"


def quantity(value: float) -> str:
    """Three significant digits, without an exponent where it can be avoided."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return scientific(value)
    decimals = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scientific(value: float) -> str:
    """``2e-04`` as ``2e-4``: as one types it in a recipe, with two significant digits at most."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """``8065`` as ``2 h 14 min``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours:,}{_NARROW}h {minutes}{_NARROW}min"
    return f"{minutes}{_NARROW}min {whole % 60}{_NARROW}s" if minutes else f"{seconds:.3g}{_NARROW}s"
