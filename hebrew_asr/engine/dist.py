"""Ranks and collectives: with ``zero.py``, the only users of ``torch.distributed`` and ``deepspeed``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist

from hebrew_asr.cores import usable_cores
from hebrew_asr.errors import EnvironmentProblem, first_line
from hebrew_asr.launching.processes import free_port


@dataclass(frozen=True)
class Ranks:
    """This process among its fellows, and the collectives they share."""

    rank: int
    size: int
    device: torch.device
    host_group: Any
    """A gloo group: what it carries needs no wait for the GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this rank prints and writes shared files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        torch_dist.barrier(group=self.host_group)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        torch_dist.all_reduce(tensor, group=self._group_of(tensor))
        return tensor

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks, in place."""
        torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.MAX, group=self._group_of(tensor))
        return tensor

    def _group_of(self, tensor: torch.Tensor) -> Any:
        return None if tensor.is_cuda else self.host_group

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank says so: one collective for all of them."""
        return [bool(said) for said in self.max(torch.tensor(flags, dtype=torch.int32)).tolist()]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        torch_dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def apart(self, *, timeout_s: float) -> Ranks:
        """The same ranks over a host group of their own, for collectives of a thread beside the trainer's; collective.

        A rank that died ends a collective at once with an error, one that does not come does after ``timeout_s``.
        """
        timeout = timedelta(seconds=timeout_s)
        return replace(self, host_group=torch_dist.new_group(backend="gloo", timeout=timeout))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        box: list[Any] = [None] * self.size
        torch_dist.all_gather_object(box, value, group=self.host_group)
        return box


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


def share_cores() -> None:
    """Keep this rank, which trains on a CPU, to its share of the cores, with a thread on each.

    Ranks wait for each other all the time. One that woke up on another's core would find cold caches and push the
    other away: on two cores a step of the demo would take 8 % longer. Cores are dealt in turn, so that fast ones are
    shared evenly.
    """
    local_rank, local_ranks = local_rank_from_environment(), local_ranks_from_environment()
    cores = usable_cores()
    if len(cores) >= local_ranks and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[local_rank::local_ranks])
    torch.set_num_threads(max(1, len(cores) // local_ranks))


def start(accelerator: str, *, timeout_s: float = 600.0) -> Ranks:
    """Join the process group; a plain ``python`` run is a group of one.

    Raises:
        EnvironmentProblem: the group could not be formed (a port in use, a rank that never came).
    """
    os.environ.setdefault("DS_ACCELERATOR", accelerator)
    import deepspeed

    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(free_port()) if os.environ["WORLD_SIZE"] == "1" else "29500")
    # Used by inference collectives only; compiling it would cost every fresh CPU machine most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if accelerator == "cuda":
        device = torch.device("cuda", local_rank_from_environment())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    try:
        backend = "nccl" if accelerator == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise EnvironmentProblem(
            f"the ranks could not meet at {where} ({first_line(error)}); "
            f"if another job holds the port, give deepspeed --master_port another one"
        ) from error
    host_group = torch_dist.new_group(backend="gloo") if accelerator == "cuda" else torch_dist.group.WORLD
    return Ranks(torch_dist.get_rank(), torch_dist.get_world_size(), device, host_group)


def has_started() -> bool:
    """Whether the ranks have met."""
    return torch_dist.is_initialized()


def stop() -> None:
    """Leave the process group."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
