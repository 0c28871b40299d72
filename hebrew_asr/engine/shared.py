"""Whether the ranks, on whatever machines, write into one and the same folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import EnvironmentProblem, first_line

_WAIT_S = 5.0
"""For what another machine wrote to be seen here."""
_POLL_S = 0.1


def require_shared(folder: Path, ranks: Ranks) -> None:
    """See that the first rank can write into the run directory, and that every rank sees what it writes; collective.

    Raises:
        EnvironmentProblem: one of the two is not so.
    """
    name = ranks.broadcast(f".seen-{secrets.token_hex(8)}")
    failure = None
    if ranks.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        except OSError as error:
            failure = f"cannot write into run directory {folder} ({first_line(error)}); give --run another one"
    if failure := ranks.broadcast(failure):
        raise ranks.in_common(EnvironmentProblem(failure))
    places = ranks.gather((socket.gethostname(), os.fspath(folder.resolve()), _is_seen(folder, name)))
    if ranks.is_main:
        (folder / name).unlink(missing_ok=True)
    blind = [(rank, host, path) for rank, (host, path, seen) in enumerate(places) if not seen]
    if blind:
        rank, host, path = blind[0]
        more = f", nor do {len(blind) - 1} others" if len(blind) > 1 else ""
        fault = EnvironmentProblem(
            f"the ranks do not share the run directory: rank {rank} does not see in {path} on {host} what rank 0 wrote "
            f"in {places[0][1]} on {places[0][0]}{more}; give --run an absolute path on a disk that all nodes share"
        )
        raise ranks.in_common(fault)


def _is_seen(folder: Path, name: str) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while True:
        # A network file system asks for a name that is new to it, and remembers that it was not there.
        with contextlib.suppress(OSError):
            if (folder / name).exists() or name in os.listdir(folder):  # noqa: PTH208
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
