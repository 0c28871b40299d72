"""Real small disks: a tmpfs of a size, mounted for as long as a test needs it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CLONE_NEWNS = 0x20000  # linux/sched.h


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """``folder`` as a disk of ``size`` (``66m``); the test is skipped where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a mounted disk: ``ro``, ``rw``, ``size=1m``."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of ``folder`` up, but for ``leave`` bytes; deleting the file returned makes room again."""
    ballast = folder / "ballast"
    with ballast.open("wb") as stream:
        while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize) > leave:
            with suppress(OSError):  # others write meanwhile
                os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, free - leave)
    return ballast


def unshare_mounts() -> None:
    """From here on what this process mounts is seen by it alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def hide_from_others(folder: Path) -> None:
    """See an empty disk at ``folder``, as on a node that does not share it."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
