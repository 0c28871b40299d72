"""Processor cores, and how the memory of a process that is kept busy is handled."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Generator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on; containers often allow fewer than the machine has."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def loading_modules() -> Generator[None, None, None]:
    """Do not look through modules for garbage, neither while they are loaded nor later: they stay.

    It takes an eighth of the time of loading them, and then 2 % of the time of decoding.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is asked for next, up to the bounds that it comes to by itself at most.

    Given back, it costs some 600 page faults for each clip that is decoded and encoded, a fifth of the processor time.
    It gives back more where ``MALLOC_TRIM_THRESHOLD_`` is set (mallopt(3)). Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def give_back_freed_memory() -> None:
    """Have glibc and Arrow give what is freed back to the system, after work that took much more than what follows.

    By themselves they keep it: of a million clips whose duplicates were sought, 140 MiB.
    """
    import pyarrow

    pyarrow.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
