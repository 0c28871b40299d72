"""A process that watches a rank and one that runs on another machine; its child, as a loader, ignores SIGTERM."""

from __future__ import annotations

import multiprocessing
import signal
import time
from types import SimpleNamespace

from hebrew_asr.engine import watchdog
from hebrew_asr.launching.processes import process_space


def main(argv: list[str]) -> int:
    """``argv``: the process id of the rank; then, for a process that stands down, ``stands-down``."""
    watchdog._POLL_S = 0.05
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the child's is from its first moment on
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    peers = [(process_space(), int(argv[0])), (("another machine",), 1)]
    watch = watchdog.Watchdog(SimpleNamespace(rank=2, gather=lambda own: [*peers, own]))  # type: ignore[arg-type]
    if "stands-down" in argv:
        watch.stand_down()
    print(f"watching, with the child {child.pid}", flush=True)
    time.sleep(1.0 if "stands-down" in argv else 60)
    child.kill()
    return 0
