"""Units of what is measured and told."""

GIB = 2**30
"""Bytes."""
