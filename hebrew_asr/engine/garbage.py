"""Keeps Python's garbage collector from looking through what is alive anyway.

Imports, the compilers and DeepSpeed leave some 500,000 objects. To look through all of them takes 0.2 s or more, each
rank does so in a step of its own, and the others wait for it.
"""

from __future__ import annotations

import gc


def set_aside() -> None:
    """Collect garbage, and from now on pass over all that is alive."""
    gc.collect()
    gc.freeze()


def take_back() -> None:
    """Collect garbage, also among what was set aside."""
    gc.unfreeze()
    gc.collect()
