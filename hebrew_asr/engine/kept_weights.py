"""Keeps what weights are while they are trained for a trial, and puts them back bit for bit."""

from __future__ import annotations

from collections.abc import Collection

import deepspeed
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from hebrew_asr.engine.dist import Ranks
from hebrew_asr.engine.fingerprint import fingerprint
from hebrew_asr.errors import TrainingFault, first_few


class KeptWeights:
    """Some weights of a model in host memory of the first rank, and fingerprints of all of them on every rank."""

    def __init__(self, asr: nn.Module, names: Collection[str], ranks: Ranks):
        """Before the model's first engine; collective. ``names``: of the weights that the trial trains."""
        self._asr, self._ranks = asr, ranks
        self._before = self._fingerprints()
        self._kept = {
            name: weight.detach().to("cpu", copy=True) if ranks.is_main else None
            for name, weight in asr.named_parameters()
            if name in names
        }

    @torch.no_grad()
    def put_back(self) -> None:
        """Between two engines; collective.

        Raises:
            TrainingFault: other weights have changed since.
        """
        weights = dict(self._asr.named_parameters())
        for name, kept in self._kept.items():
            weight = weights[name]
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=_is_sharded(weight)):
                if kept is not None:
                    weight.copy_(kept)
            if not _is_sharded(weight):  # else the first rank's was dealt out above
                torch_dist.broadcast(weight.data, src=0)
        self._kept.clear()
        now = self._fingerprints()
        own = [name for name, before in self._before.items() if not torch.equal(now[name], before)]
        if changed := sorted({name for found in self._ranks.gather(own) for name in found}):
            raise self._ranks.in_common(TrainingFault(f"a trial has changed weights: {first_few(changed)}"))

    def _fingerprints(self) -> dict[str, Tensor]:
        found = {}
        for name, weight in self._asr.named_parameters():
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=None, enabled=_is_sharded(weight)):
                found[name] = fingerprint(weight)
        return {name: sums.cpu() for name, sums in found.items()}


def _is_sharded(weight: nn.Parameter) -> bool:
    return hasattr(weight, "ds_id")
