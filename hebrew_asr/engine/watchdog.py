"""Ends the other ranks of this machine seconds after one has died; under NCCL they would wait for it for minutes."""

from __future__ import annotations

import os
import threading

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import TrainingFault, end_at_once
from hebrew_asr.launching.job import Job
from hebrew_asr.launching.processes import has_ended, process_of, process_space
from hebrew_asr.logs import log

_POLL_S = 1.0


class Watchdog:
    """Watches the other rank processes of this machine from a thread of its own."""

    def __init__(self, ranks: Ranks):
        """Collective: the ranks tell each other who they are."""
        here = process_space()
        peers = ranks.gather((here, os.getpid()))
        pids = {rank: pid for rank, (space, pid) in enumerate(peers) if space == here and rank != ranks.rank}
        self._peers = {rank: process_of(pid) for rank, pid in pids.items()}
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
        return next((rank for rank, process in self._peers.items() if has_ended(process)), None)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            dead = self.dead_peer()
            # A rank that leaves with an error of its own says so: give the main thread time to notice it.
            if dead is not None and not self._ended.wait(5 * _POLL_S):
                log.error("rank %d is gone; rank %d leaves too", dead, self._rank)
                Job.of_this_rank().follow()
                end_at_once(TrainingFault.exit_code)
