"""What a run takes of its machines: memory, power and utilization of every rank's GPU, memory of its host."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.report.records import MachineRecord
from hebrew_asr.units import GIB

_EVERY_STEPS = 50
_FIRST_STEPS = 3
"""The first record of a phase: its first step, with its compiler and its proof, is no example of the others."""


def is_machine_read(steps_of_phase: int, *, is_last: bool) -> bool:
    """Whether the machines are read after so many steps of a phase: asking all ranks takes milliseconds."""
    return is_last or steps_of_phase == _FIRST_STEPS or steps_of_phase % _EVERY_STEPS == 0


def forget_peak(ranks: Ranks) -> None:
    """Count the most memory that is taken from here on."""
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)


def read_machine(ranks: Ranks, step: int, phase: str) -> MachineRecord:
    """Read all ranks' figures; collective. A list is empty where a rank has no such figure."""
    own = {
        "host_gib": _gib(psutil.Process().memory_info().rss),
        "host_free_gib": _gib(psutil.virtual_memory().available),
    }
    if ranks.device.type == "cuda":
        own |= {
            "memory_gib": _gib(torch.cuda.max_memory_allocated(ranks.device)),
            "reserved_gib": _gib(torch.cuda.max_memory_reserved(ranks.device)),
        }
        own |= _reading("power_w", lambda: torch.cuda.power_draw(ranks.device) / 1000)
        own |= _reading("utilization_percent", lambda: torch.cuda.utilization(ranks.device))
    of_ranks = ranks.gather(own)
    shared = set.intersection(*(set(one) for one in of_ranks))
    return MachineRecord(step=step, phase=phase, **{name: [one[name] for one in of_ranks] for name in shared})


def _gib(size: int) -> float:
    return round(size / GIB, 3)


def _reading(name: str, ask: Callable[[], float]) -> dict[str, float]:
    """What the driver tells; nothing where it does not, as of a MIG instance or without NVML."""
    try:
        return {name: round(float(ask()), 1)}
    except Exception:  # pynvml's errors, which are of many types
        return {}
