"""Proof of phase: what was meant to train has moved, what was meant to stay has not, and all ranks agree.

Looked for in the fp32 masters, not in the bf16 copies: a small step can round away there. A tensor's fingerprint is
two wrapping 64-bit sums over its bits, so "did not move" means bit-equal.
"""

from __future__ import annotations

import torch
from torch import nn

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.zero import Partition
from hebrew_asr.errors import TrainingFault
from hebrew_asr.model.phases import ParameterGroup, num_weights

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 24
"""Elements of which there is an int64 copy at a time …"""
_CHUNK_IN_CACHE = 1 << 18
"""… and on a CPU, which takes five times as long where they leave its cache."""


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """Two int64 sums over a tensor's bits, of shape (2,): equal for equal bits, almost surely different otherwise.

    The second one weighs each element by its place, so that exchanged ones are noticed.
    """
    bits = tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    size = _CHUNK if bits.is_cuda else _CHUNK_IN_CACHE
    for index, chunk in enumerate(bits.split(size)):
        wide = chunk.to(torch.int64)
        places = torch.arange(index * size, index * size + len(wide), device=wide.device)
        sums[0] += wide.sum()
        sums[1] += (wide * (wide + places)).sum()
    return sums


def _flat(master: torch.Tensor) -> torch.Tensor:
    return master.detach().reshape(-1)


class PhaseProof:
    """Fingerprints before a phase's first effective step, compared after it."""

    def __init__(self, asr: nn.Module, groups: list[ParameterGroup], zero_stage: int, ranks: Ranks):
        """Nothing is read yet: ``before_step`` does, right before the step that is to be proved."""
        self._asr, self._stage, self._ranks = asr, zero_stage, ranks
        self._names = [name for name, _ in asr.named_parameters()]
        self._trainable = {name for group in groups for name in group.parameters}
        self._before: torch.Tensor | None = None

    def before_step(self, partitions: list[Partition]) -> None:
        """Remember every weight as it is."""
        self._before = self._fingerprints(partitions)

    def after_step(self, partitions: list[Partition]) -> dict[str, int]:
        """Compare; the counts are of weights.

        Raises:
            TrainingFault: some parameter did not do what the phase says, or ranks hold different weights.
        """
        assert self._before is not None, "before_step was not called"
        changed = (self._fingerprints(partitions) != self._before).any(dim=1).to(torch.int32)
        moved = self._ranks.max(changed).bool().cpu().tolist()
        stuck = [name for name, did in zip(self._names, moved, strict=True) if name in self._trainable and not did]
        strayed = [name for name, did in zip(self._names, moved, strict=True) if name not in self._trainable and did]
        if stuck or strayed:
            raise TrainingFault(
                "phase proof failed: "
                + "; ".join(
                    f"{len(names)} parameters {fate} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
                    for names, fate in ((stuck, "should train and did not move"), (strayed, "are frozen and moved"))
                    if names
                )
            )
        self._check_agreement()
        sizes = {name: num_weights(p) for name, p in self._asr.named_parameters()}
        trainable = sum(sizes[name] for name in self._trainable)
        moved_weights = sum(sizes[name] for name, did in zip(self._names, moved, strict=True) if did)
        return {"trainable": trainable, "moved": moved_weights, "frozen": sum(sizes.values()) - moved_weights}

    def _fingerprints(self, partitions: list[Partition]) -> torch.Tensor:
        """(parameters, 2): of this rank's fp32 master fragments where there are any, else of the weight itself."""
        rows = {name: torch.zeros(2, dtype=torch.int64, device=self._ranks.device) for name in self._names}
        for partition in partitions:
            for fragment in partition.fragments:
                piece = _flat(partition.master)[fragment.offset : fragment.offset + fragment.length]
                rows[fragment.parameter] += fingerprint(piece).to(self._ranks.device)
        for name, parameter in self._asr.named_parameters():
            if name not in self._trainable:
                rows[name] = fingerprint(self._local(parameter)).to(self._ranks.device)
        return torch.stack([rows[name] for name in self._names])

    def _local(self, parameter: nn.Parameter) -> torch.Tensor:
        return parameter.ds_tensor if self._stage == 3 else parameter  # type: ignore[attr-defined]

    def _check_agreement(self) -> None:
        """Under ZeRO 0-2 every rank holds all weights: they must be the same bits."""
        if self._stage == 3 or self._ranks.size == 1:
            return
        rows = torch.stack([fingerprint(p).to(self._ranks.device) for p in self._asr.parameters()])
        highest, lowest = self._ranks.max(rows.clone()), -self._ranks.max(-rows)
        apart = (highest != lowest).any(dim=1).cpu().tolist()
        names = [name for name, differs in zip(self._names, apart, strict=True) if differs]
        if names:
            raise TrainingFault(f"ranks hold different weights after a step: {', '.join(names[:5])}")
