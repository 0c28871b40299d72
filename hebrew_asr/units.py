"""Units of what is measured and told."""

GIB = 2**30
"""Bytes."""


def gib(size_bytes: float) -> str:
    """Bytes as text, in the unit that suits them."""
    return f"{size_bytes / GIB:,.1f} GiB" if size_bytes > GIB / 2 else f"{size_bytes / 2**20:.1f} MiB"


def count(number: int, noun: str) -> str:
    """``1 clip``, ``1,200 clips``, ``5 epochs``, ``2 batches``."""
    ending = "" if number == 1 else "es" if noun.endswith("tch") else "s"
    return f"{number:,} {noun}{ending}"
