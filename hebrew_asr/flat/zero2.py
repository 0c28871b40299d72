"""DeepSpeed's ZeRO-2 for bf16 weights, with gradients that are reduced all at once (``gradients.py``).

Of a weight of which most rows stay, the others alone are reduced (``live_rows.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from hebrew_asr.flat.buckets import Group, Run
from hebrew_asr.flat.gradients import FlatGradients
from hebrew_asr.flat.live_rows import LiveRows
from hebrew_asr.passes.seam import Seam


class FlatZeRO2(FlatGradients, DeepSpeedZeroOptimizer):
    """``DeepSpeedZeroOptimizer`` with partitioned gradients that are reduced when a micro-batch is over."""

    @staticmethod
    def convert(optimizer: Any, *, compiled: bool, seam: Seam, kept_rows: Mapping[Tensor, Tensor]) -> None:
        """Turn a fresh ``DeepSpeedZeroOptimizer`` into this: DeepSpeed offers no way to pass one in.

        ``kept_rows``: weights, and of each the rows, (rows, 1) bool, whose gradients are 0.
        """
        for hook in optimizer._grad_acc_hooks:
            hook.remove()
        optimizer._grad_acc_hooks.clear()
        optimizer.__class__ = FlatZeRO2
        optimizer._convert(compiled=compiled, seam=seam)
        optimizer._lay_out(optimizer._groups(kept_rows), overlaps=bool(optimizer.overlap_comm))

    def _groups(self, kept_rows: Mapping[Tensor, Tensor]) -> list[Group]:
        groups = []
        placed = zip(self._parameters(), self.round_robin_bit16_offsets, self._masters(), strict=True)
        for index, (parameters, starts, master) in enumerate(placed):
            self._live[index] = rows = self._live_rows(parameters, master.numel(), kept_rows)
            if rows is None:
                runs = [Run(one, 0, one.numel(), start) for one, start in zip(parameters, starts, strict=True)]
            else:
                runs = [Run(rows, 0, rows.numel(), 0)]
            share = master.numel() if rows is None else rows.length
            groups.append(Group(runs, share, self._seam.weights.issuperset(parameters)))
        return groups

    def _live_rows(self, group: list[Tensor], share: int, kept_rows: Mapping[Tensor, Tensor]) -> LiveRows | None:
        if len(group) != 1 or group[0] not in kept_rows:
            return None
        return LiveRows.of(group[0], kept_rows[group[0]], share, self.rank, self.num_ranks)

    def _masters(self) -> list[Tensor]:
        return self.single_partition_of_fp32_groups

    def _parameters(self) -> list[list[Tensor]]:
        return self.round_robin_bit16_groups

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        groups = zip(self.bit16_groups_flat, self.parallel_partitioned_bit16_groups, strict=True)
        return [(flat, slices[self.rank]) for flat, slices in groups]
