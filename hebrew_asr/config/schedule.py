"""Learning rates as a pure function of the step: there is no scheduler object to carry, bind or resume."""

from __future__ import annotations

from hebrew_asr.config.recipe import Recipe


class Schedule:
    """Linear warm-up and linear decay over the whole run; a group that joins later also warms up by itself."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        """``steps_per_epoch``: optimizer steps in an epoch, of any phase."""
        self._recipe = recipe
        self.total_steps = recipe.epochs * steps_per_epoch
        self.last_step = min(self.total_steps, recipe.max_steps or self.total_steps)
        """Steps after which the run ends: the recipe's ``max_steps`` cuts the run short and not the decay."""
        self._warmup_steps = max(1, round(recipe.optimizer.warmup_share * self.total_steps))
        self.phase_starts: list[int] = []
        start = 0
        for phase in recipe.phases:
            self.phase_starts.append(start)
            start += phase.epochs * steps_per_epoch

    def phase_of(self, step: int) -> int:
        """Index of the phase that step ``step`` (from 0) belongs to."""
        return sum(step >= start for start in self.phase_starts) - 1

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each module group for step ``step`` (from 0); above 0 for every step of the run."""
        phase = self._recipe.phases[self.phase_of(step)]
        rise = min(1.0, (step + 1) / self._warmup_steps)
        fall = (self.total_steps - step) / max(1, self.total_steps - self._warmup_steps)
        return {
            group: peak * min(rise, fall) * self._joined(group, step) for group, peak in phase.learning_rates.items()
        }

    def highest_rates(self, index: int) -> dict[str, float]:
        """The highest learning rate of each module group in phase ``index``; empty where the run ends before it.

        Only the phase in which the warm-up ends reaches the recipe's own rates; in later ones the decay has begun.
        """
        first, stop = self.phase_starts[index], [*self.phase_starts, self.total_steps][index + 1]
        highest: dict[str, float] = {}
        for step in range(first, min(stop, self.last_step)):
            for group, rate in self.rates(step).items():
                highest[group] = max(rate, highest.get(group, 0.0))
        return highest

    def _joined(self, group: str, step: int) -> float:
        """Factor of a group that was frozen before: it rises over ``join_warmup_steps`` of its own."""
        first = next(number for number, phase in enumerate(self._recipe.phases) if group in phase.learning_rates)
        if first == 0:
            return 1.0
        return min(1.0, (step + 1 - self.phase_starts[first]) / max(1, self._recipe.optimizer.join_warmup_steps))
