"""Which clips per step takes and who gets them: a pure function of (seed, epoch, step), so resuming costs nothing.

Every step takes ``clips_per_step`` clips of the epoch's permutation. They are dealt to ranks by cost, longest first to
the least loaded, and cut into the same number of micro-batches on every rank.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from hebrew_asr.config.profiles import Batching


class StepSampler:
    """Deals the clips of any step. Pure: calls in any order, on any rank, give the same answer."""

    def __init__(self, costs: Sequence[float] | np.ndarray, batching: Batching, seed: int):
        """``costs``: relative work of each clip, for example its duration in seconds."""
        self._costs, self._batching, self._seed = np.asarray(costs, dtype=np.float64), batching, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.uint32)

    def with_batching(self, batching: Batching) -> StepSampler:
        """The same clips at every step, in other micro-batches."""
        return StepSampler(self._costs, batching, self._seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take every clip once; the last may be smaller."""
        return math.ceil(len(self._costs) / self._batching.clips_per_step)

    def clips_of_step(self, step: int) -> list[int]:
        """Clip indices of optimizer step ``step`` (from 0, over all epochs), in permutation order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.arange(len(self._costs), dtype=np.uint32)  # half the memory of ``permutation``'s, as dealt
            np.random.default_rng((self._seed, epoch)).shuffle(self._order)
            self._epoch = epoch
        size = self._batching.clips_per_step
        return self._order[index * size : (index + 1) * size].tolist()

    def deal(self, step: int) -> list[list[list[int]]]:
        """Clips of a step by [rank][micro-batch]; a micro-batch may be empty when the epoch's last step is small."""
        chosen, batching = self.clips_of_step(step), self._batching
        costs = dict(zip(chosen, self._costs[chosen].tolist(), strict=True))
        by_rank = _balanced(costs, batching.num_ranks, math.ceil(len(chosen) / batching.num_ranks))
        return [list(map(list, _balanced(own, batching.accumulation, batching.max_micro_batch))) for own in by_rank]


def _balanced(costs: dict[int, float], bins: int, capacity: int) -> list[dict[int, float]]:
    """Clips with their costs, longest-processing-time first into ``bins`` of at most ``capacity`` clips each."""
    heap = [(0.0, 0, number) for number in range(bins)]
    filled: list[dict[int, float]] = [{} for _ in range(bins)]
    for clip, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        load, count, number = heapq.heappop(heap)
        filled[number][clip] = cost
        if count + 1 < capacity:
            heapq.heappush(heap, (load + cost, count + 1, number))
    return filled
