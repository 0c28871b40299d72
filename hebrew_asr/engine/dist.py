"""The ranks: how they meet, what they tell each other, how they part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

from hebrew_asr import errors
from hebrew_asr.errors import EnvironmentProblem, HebrewASRError, first_line
from hebrew_asr.files import disk_fault
from hebrew_asr.launching import place
from hebrew_asr.launching.processes import free_port

Error = TypeVar("Error", bound=HebrewASRError)
_SLOWER_S = 3600.0
_PARTING_S = 5.0
_STORES: list[Any] = []
"""Kept: the process group shares the first rank's server, which ends with the store that began it."""


@dataclass(frozen=True)
class Ranks:
    """This process among its fellows, and the collectives they share."""

    rank: int
    size: int
    device: torch.device
    host_group: Any
    """A gloo group: what it carries needs no wait for the GPU."""

    def in_common(self, error: Error) -> Error:
        """An error that all ranks are about to raise: the first alone is to print it."""
        error.is_common = True
        return error

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

    def begin_sum(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """As ``sum`` of a tensor on the host, begun; what is returned waits for the sum, however often it is asked."""
        work = torch_dist.all_reduce(tensor, group=self.host_group, async_op=True)

        def end() -> torch.Tensor:
            work.wait()
            return tensor

        return end

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

    def reasons(self, own: str) -> dict[int, str]:
        """What ranks say, of those that do not say nothing; the same on every rank, collective."""
        return {rank: said for rank, said in enumerate(self.gather(own)) if said}


def start(accelerator: str) -> Ranks:
    """Join the process group; a plain ``python`` run is a group of one.

    Raises:
        EnvironmentProblem: the group could not be formed (a port in use, a rank that never came, a wrong time-out).
    """
    os.environ.setdefault("DS_ACCELERATOR", accelerator)
    import deepspeed

    _complete_environment()
    # Else NCCL registers what recorded collectives read, for which all ranks must record alike (its guide, "User Buffer
    # Registration"); one whose recording failed would not.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    # Used by inference collectives only; compiling it would cost every fresh CPU machine most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if accelerator == "cuda":
        device = torch.device("cuda", place.local_rank_from_environment())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    try:
        backend, timeout = "nccl" if accelerator == "cuda" else "gloo", timedelta(seconds=place.collective_timeout_s())
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise _no_meeting(error) from error
    host_group = torch_dist.new_group(backend="gloo") if accelerator == "cuda" else torch_dist.group.WORLD
    return Ranks(torch_dist.get_rank(), torch_dist.get_world_size(), device, host_group)


def _complete_environment() -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(free_port()) if os.environ["WORLD_SIZE"] == "1" else "29500")


def _no_meeting(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the ranks could not meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(error)}); "
        "if another job holds the port, give deepspeed --master_port another one; if another machine takes longer to "
        "prepare its data, wait longer by NCCL_TIMEOUT=SECONDS"
    )


@contextmanager
def failing_together() -> Iterator[None]:
    """For what each rank does before it joins the process group: the failure of one is the failure of all.

    The ranks tell each other through the store at which they will meet. Otherwise they would wait in :func:`start` for
    a rank that is gone. They wait for an hour at least, as one machine may download data faster than another.

    Raises:
        HebrewASRError: on every rank, of the type and with the words of the first rank that failed.
        EnvironmentProblem: the ranks could not reach each other.
    """
    timeout = timedelta(seconds=max(_SLOWER_S, place.collective_timeout_s()))
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        refused = disk_fault(error) if isinstance(error, OSError) else None
        failure = error if refused is None else EnvironmentProblem(refused)
    own = None if failure is None else [type(failure).__name__, first_line(failure)]
    try:
        everybody = _exchange(own, timeout)
    except (RuntimeError, ValueError) as error:
        raise (failure or _no_meeting(error)) from error
    failed = [rank for rank, said in enumerate(everybody) if said is not None]
    is_our_own = own == everybody[0] or not isinstance(failure, HebrewASRError)
    if failure is not None and is_our_own:
        raise failure
    if failed:
        kind, text = everybody[failed[0]]
        raise getattr(errors, kind, HebrewASRError)(f"rank {failed[0]}: {text}") from failure


def _exchange(value: Any, timeout: timedelta) -> list[Any]:
    """Every rank's ``value``, by rank; the first rank, which may hold the store, leaves when all have read."""
    size, rank = place.num_ranks_from_environment(), place.rank_from_environment()
    if size == 1:
        return [value]
    _complete_environment()
    store, *_ = next(torch_dist.rendezvous("env://", timeout=timeout))
    _STORES.append(store)
    store.set(f"failure of {rank}", json.dumps(value))
    found = [json.loads(store.get(f"failure of {other}")) for other in range(size)]
    store.set(f"read by {rank}", "")
    if rank == 0:
        for other in range(size):
            store.get(f"read by {other}")
    return found


def has_started() -> bool:
    """Whether the ranks have met."""
    return torch_dist.is_initialized()


def part() -> bool:
    """Before this process ends by an error that all ranks raise, when the first has printed it.

    The others wait for the first one's word, since a launcher kills all ranks when one leaves. The first waits for
    theirs and leaves last, since it holds the store: NCCL asks it each second, and prints a page of frames without it.

    Returns:
        Whether they waited for each other; not where they never met, or one did not come within some seconds.
    """
    if not _STORES:
        return False
    store, patience = _STORES[-1], timedelta(seconds=_PARTING_S)
    size, rank = place.num_ranks_from_environment(), place.rank_from_environment()
    with suppress(RuntimeError):
        if rank:
            store.wait(["0 parts"], patience)
        store.set(f"{rank} parts", "")
        if not rank:
            store.wait([f"{other} parts" for other in range(1, size)], patience)
        return True
    return False


def stop() -> None:
    """Leave the process group."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
