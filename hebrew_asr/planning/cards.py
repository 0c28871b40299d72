"""The GPUs of this machine, and the shipped profile that suits them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from hebrew_asr.config.profiles import Profile, load_profile, shipped_profiles
from hebrew_asr.units import GIB

_NEEDED_GIB = {1: 42.0, 2: 27.0, 4: 17.0, 8: 13.0}
"""What ``plan`` says a card needs under ZeRO-2 with 64 clips per step, by rank count."""
_OFFLOADED_GIB = 16.0
"""Likewise with the optimizer on the host, in micro-batches of 16 clips."""
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""NVIDIA's driver makes them on Linux and under Windows. Without them torch, which loads in seconds, finds no GPU."""


@dataclass(frozen=True)
class Card:
    """A GPU as CUDA shows it."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


def visible_cards() -> list[Card]:
    """The GPUs that this process may use."""
    if not any(Path(name).exists() for name in _DRIVER_FILES):
        return []
    import torch

    cards = []
    for index in range(torch.cuda.device_count()):
        have = torch.cuda.get_device_properties(index)
        cards.append(Card(have.name, have.total_memory / GIB, (have.major, have.minor)))
    return cards


def profile_for(cards: list[Card]) -> str | None:
    """The shipped profile that suits these GPUs best; None without GPUs, or where none fits."""
    if not cards:
        return None
    ranks, memory = len(cards), min(card.memory_gib for card in cards)
    device = cards[0].name.lower().replace(" ", "").replace("geforce", "")
    needed = _NEEDED_GIB[max(count for count in _NEEDED_GIB if count <= ranks)]

    def merit(profile: Profile) -> tuple[bool, bool, bool, float]:
        family = re.sub(r"x\d+.*", "", profile.name)
        distance = abs(math.log(profile.hardware.memory_gib / memory))
        return (
            profile.hardware.num_ranks == ranks,
            family in device,
            profile.zero_stage < 3,
            -distance - abs(math.log(profile.hardware.num_ranks / ranks)),
        )

    shipped = [load_profile(name) for name in shipped_profiles()]
    on_gpus = [profile for profile in shipped if profile.hardware.accelerator == "cuda"]
    fitting = [
        profile
        for profile in on_gpus
        if memory >= needed or (profile.offloads_optimizer and memory >= _OFFLOADED_GIB and ranks == 1)
    ]
    return max(fitting, key=merit).name if fitting else None
