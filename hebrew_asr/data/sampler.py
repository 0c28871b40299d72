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

    def __init__(self, costs: Sequence[float], batching: Batching, seed: int):
        """``costs``: relative work of each clip, for example its duration in seconds."""
        self._costs, self._batching, self._seed = np.asarray(costs, dtype=np.float64), batching, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def with_batching(self, batching: Batching) -> StepSampler:
        """The same clips at every step, dealt to other micro-batches."""
        return StepSampler(self._costs, batching, self._seed)  # type: ignore[arg-type]

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take every clip once; the last may be smaller."""
        return math.ceil(len(self._costs) / self._batching.clips_per_step)

    def clips_of_step(self, step: int) -> list[int]:
        """Clip indices of optimizer step ``step`` (from 0, over all epochs), in permutation order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._costs))
            self._epoch = epoch
        size = self._batching.clips_per_step
        return self._order[index * size : (index + 1) * size].tolist()

    def deal(self, step: int) -> list[list[list[int]]]:
        """Clips of a step by [rank][micro-batch]; a micro-batch may be empty when the epoch's last step is small."""
        chosen = self.clips_of_step(step)
        by_rank = self._balanced(chosen, self._batching.num_ranks, math.ceil(len(chosen) / self._batching.num_ranks))
        return [self._balanced(own, self._batching.accumulation, self._batching.max_micro_batch) for own in by_rank]

    def _balanced(self, clips: list[int], bins: int, capacity: int) -> list[list[int]]:
        """Longest-processing-time first into ``bins`` of at most ``capacity`` clips each."""
        heap = [(0.0, 0, number) for number in range(bins)]
        filled: list[list[int]] = [[] for _ in range(bins)]
        for clip in sorted(clips, key=lambda index: (-self._costs[index], index)):
            load, count, number = heapq.heappop(heap)
            filled[number].append(clip)
            if count + 1 < capacity:
                heapq.heappush(heap, (load + float(self._costs[clip]), count + 1, number))
        return filled
