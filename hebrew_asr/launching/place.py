"""What a rank knows of its place among the others before it meets them: the launcher says it in the environment."""

from __future__ import annotations

import math
import os

from hebrew_asr.cores import usable_cores
from hebrew_asr.errors import EnvironmentProblem

_LONGEST_S = 7 * 86400.0


def num_ranks_from_environment() -> int:
    """Ranks that the launcher started (1 without one), known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_environment() -> int:
    """This process's rank, known before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def local_rank_from_environment() -> int:
    """This process's rank on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_ranks_from_environment() -> int:
    """Ranks on this machine, known before any process group exists."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", num_ranks_from_environment())))


def collective_timeout_s() -> float:
    """Seconds that the ranks wait for each other in a collective: ``NCCL_TIMEOUT`` where it is set, else ten minutes.

    NCCL itself does not read that name, and PyTorch takes the time-out as an argument.

    Raises:
        EnvironmentProblem: it is no number of seconds above 0.
    """
    given = os.environ.get("NCCL_TIMEOUT") or "600"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_S:
        raise EnvironmentProblem(f"NCCL_TIMEOUT={given}: give seconds, from 1 to {_LONGEST_S:.0f}, such as 1800")
    return seconds


def share_cores() -> None:
    """Keep this rank, which trains on a CPU, to its share of the cores, with a thread on each.

    Ranks wait for each other all the time. One that woke up on another's core would find cold caches and push the
    other away: on two cores a step of the demo would take 8 % longer. Cores are dealt in turn, so that fast ones are
    shared evenly.
    """
    import torch

    local_rank, local_ranks = local_rank_from_environment(), local_ranks_from_environment()
    cores = usable_cores()
    if len(cores) >= local_ranks and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[local_rank::local_ranks])
    torch.set_num_threads(max(1, len(cores) // local_ranks))
