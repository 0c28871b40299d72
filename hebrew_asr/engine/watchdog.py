"""A rank that dies takes the others down in seconds: NCCL would let them wait for it for minutes."""

from __future__ import annotations

import os
import socket
import sys
import threading

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import TrainingFault

_POLL_S = 1.0


class Watchdog:
    """Watches the other rank processes of this machine from a thread of its own."""

    def __init__(self, ranks: Ranks):
        """Collective: the ranks tell each other who they are."""
        here = socket.gethostname()
        peers = ranks.gather((here, os.getpid()))
        self._peers = {rank: pid for rank, (host, pid) in enumerate(peers) if host == here and rank != ranks.rank}
        self._rank = ranks.rank
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stand_down(self) -> None:
        """Stop watching: from here on ranks may leave."""
        self._ended.set()
        self._thread.join()

    def dead_peer(self) -> int | None:
        """A rank of this machine that is gone, if any."""
        return next((rank for rank, pid in self._peers.items() if not _is_running(pid)), None)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            dead = self.dead_peer()
            # A rank that leaves with an error of its own says so; give the main thread a moment to notice and tell.
            if dead is not None and not self._ended.wait(5 * _POLL_S):
                print(f"error: rank {self._rank}: rank {dead} is gone; leaving too", file=sys.stderr, flush=True)
                os._exit(TrainingFault.exit_code)


def _is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
