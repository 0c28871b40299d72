"""Which clips per step takes and who gets them: a pure function of (seed, epoch, step), so resuming costs nothing.

Every step takes ``clips_per_step`` clips of the epoch's permutation. They are dealt to ranks by cost, longest first to
the least loaded, and cut into the same number of micro-batches on every rank.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from hebrew_asr.config.batching import Batching

_DRAWS_AT_ONCE = 1 << 16


class Draw(NamedTuple):
    """A clip in its turn."""

    clip: int
    """Its index."""
    times_before: int
    """How often it came earlier in the epoch: 0 unless a mixture repeats it."""


class StepSampler:
    """Deals the clips of any step. Pure: calls in any order, on any rank, give the same answer."""

    def __init__(
        self,
        costs: Sequence[float] | np.ndarray,
        batching: Batching,
        seed: int,
        mixture: Callable[[int], np.ndarray] | None = None,
    ):
        """How clips are dealt.

        Args:
            costs: relative work of each clip, for example its duration in seconds.
            batching: distributes the clips of a step.
            seed: of their order.
            mixture: gives the clips of an epoch (uint32), as many as there are ``costs``; each once by default.
        """
        self._costs, self._batching, self._seed = np.asarray(costs, dtype=np.float64), batching, seed
        self._mixture = mixture
        self._epoch, self._order = -1, np.empty(0, dtype=np.uint32)
        self._times_before: np.ndarray | None = None

    def with_batching(self, batching: Batching) -> StepSampler:
        """The same clips at every step, in other micro-batches."""
        return StepSampler(self._costs, batching, self._seed, self._mixture)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many clips as there are; the last may be smaller."""
        return math.ceil(len(self._costs) / self._batching.clips_per_step)

    def clips_of_step(self, step: int) -> list[int]:
        """Clip indices of optimizer step ``step`` (from 0, over all epochs), in permutation order."""
        return [draw.clip for draw in self.draws_of_step(step)]

    def draws_of_step(self, step: int) -> list[Draw]:
        """Clips of optimizer step ``step`` (from 0, over all epochs), in permutation order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        self._shuffle(epoch)
        size = self._batching.clips_per_step
        own = slice(index * size, (index + 1) * size)
        before = repeat(0) if self._times_before is None else self._times_before[own].tolist()
        return list(map(Draw, self._order[own].tolist(), before))

    def longest_step(self, last_step: int) -> int:
        """The one of the first ``last_step`` whose clips cost most together."""
        size, highest, longest = self._batching.clips_per_step, -1.0, 0
        for first in range(0, last_step, self.steps_per_epoch):
            self._shuffle(first // self.steps_per_epoch)
            costs = np.add.reduceat(self._costs[self._order], range(0, len(self._order), size))[: last_step - first]
            if costs.max() > highest:
                highest, longest = float(costs.max()), first + int(costs.argmax())
        return longest

    def deal(self, step: int) -> list[list[list[Draw]]]:
        """Clips of a step by [rank][micro-batch]; a micro-batch may be empty when the epoch's last step is small."""
        batching, draws = self._batching, self.draws_of_step(step)
        costs = dict(zip(draws, self._costs[[draw.clip for draw in draws]].tolist(), strict=True))
        by_rank = _balanced(costs, batching.num_ranks, math.ceil(len(costs) / batching.num_ranks))
        return [list(map(list, _balanced(own, batching.accumulation, batching.max_micro_batch))) for own in by_rank]

    def _shuffle(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        every = np.arange(len(self._costs), dtype=np.uint32)  # half the memory of ``permutation``'s, as dealt
        self._order = every if self._mixture is None else self._mixture(epoch)
        np.random.default_rng((self._seed, epoch)).shuffle(self._order)
        self._times_before = None if self._mixture is None else _times_before(self._order)
        self._epoch = epoch


def _times_before(order: np.ndarray) -> np.ndarray:
    """(draws,) uint32, how often the clip of each draw in ``order`` (draws,) comes before it."""
    found, seen = np.empty(len(order), np.uint32), np.zeros(int(order.max()) + 1, np.uint32)
    for first in range(0, len(order), _DRAWS_AT_ONCE):  # one sort of all takes 25 bytes more of each
        part = order[first : first + _DRAWS_AT_ONCE]
        by_clip = np.argsort(part, kind="stable")
        clips = part[by_clip]
        times = seen[clips] + np.arange(len(part), dtype=np.uint32) - np.searchsorted(clips, clips).astype(np.uint32)
        found[first + by_clip] = times
        seen[clips] = times + 1  # of a clip's draws the last one stays
    return found


def _balanced(costs: dict[Draw, float], bins: int, capacity: int) -> list[dict[Draw, float]]:
    """Clips with their costs, longest-processing-time first into ``bins`` of at most ``capacity`` clips each."""
    heap = [(0.0, 0, number) for number in range(bins)]
    filled: list[dict[Draw, float]] = [{} for _ in range(bins)]
    for draw, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        load, count, number = heapq.heappop(heap)
        filled[number][draw] = cost
        if count + 1 < capacity:
            heapq.heappush(heap, (load + cost, count + 1, number))
    return filled
