"""The learning-rate range test (Smith 2015, arXiv 1506.01186): a short training whose rates rise.

``hebrew-asr lr-range`` runs this file through the DeepSpeed launcher; ``LrRangeArguments`` are its options. The steps
are those of the training loop; evaluations, checkpoints and the model are left out.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from hebrew_asr.config.options import parse_options
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.config.schedule import Schedule
from hebrew_asr.data.loader import StepBatch
from hebrew_asr.engine import dist
from hebrew_asr.engine.engine import MicroBatchTooLarge, StepResult
from hebrew_asr.errors import HebrewASRError, exit_process
from hebrew_asr.files import write_json
from hebrew_asr.launching.stopping import StopRequest
from hebrew_asr.planning.lr_curve import has_diverged, only_finite
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.loop import train
from hebrew_asr.training.rank import run_rank
from hebrew_asr.training.saving import raise_together
from hebrew_asr.training.session import Session
from hebrew_asr.training.setup import Run, set_up
from hebrew_asr.watching.progress import Course


@dataclass
class LrRangeArguments(TrainArguments):
    """Train with rising rates; ``hebrew-asr lr-range`` calls this on every rank."""

    phase: str = ""
    """Name of the phase that trains."""
    steps: int = 100
    """Steps from the lowest to the highest rates, if the loss does not diverge before."""
    lowest: float = 0.01
    """Factor of the recipe's rates at the first step."""
    highest: float = 100.0
    """Factor of the recipe's rates at the last step."""
    out: Path = Path("curve.json")
    """JSON file of the losses by step."""


class Ramp(Schedule):
    """All rates of one phase, times a factor that rises exponentially."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int, arguments: LrRangeArguments):
        """``steps_per_epoch``: of the data."""
        super().__init__(recipe, steps_per_epoch)
        self._index = [phase.name for phase in recipe.phases].index(arguments.phase)
        self._rates, self._arguments = recipe.phases[self._index].learning_rates, arguments
        self.last_step = arguments.steps
        self.phase_starts = [0] * len(recipe.phases)

    def phase_of(self, step: int) -> int:
        """The one that is tested."""
        return self._index

    def factor(self, step: int) -> float:
        """The factor of the recipe's rates at step ``step`` (from 0)."""
        given = self._arguments
        return given.lowest * (given.highest / given.lowest) ** (step / max(1, given.steps - 1))

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of each module group."""
        return {group: rate * self.factor(step) for group, rate in self._rates.items()}


class RampCourse(Course):
    """The steps of a range test, for the view: those of one phase, none of which is followed by an evaluation."""

    def evaluations_after(self, step: int) -> list[tuple[int, bool]]:
        """There are none."""
        return []


class RangeTest(Session):
    """Training of which nothing is kept but the loss of every step; it ends where that diverges."""

    def __init__(self, run: Run):
        """Nothing happens yet."""
        super().__init__(run)
        self.losses: list[float] = []
        run.stop.request.explain = lambda: "nothing is kept of a measurement"

    @property
    def is_done(self) -> bool:
        """Whether the highest rates are reached, or the loss has diverged: it is the same on every rank."""
        return super().is_done or has_diverged(self.losses)

    def step(self, batch: StepBatch) -> StepResult | None:
        """One optimizer step."""
        result = super().step(batch)
        self.run.stop.request.unsaved = False
        return result

    def enter_phase_if_due(self) -> None:
        """Never: one phase is tested."""

    def save_if_due(self) -> None:
        """Never."""

    def evaluate_if_due(self) -> None:
        """Never."""

    def _write_records(self) -> None:
        self.losses += [record.loss for record in self._records]
        super()._write_records()

    def shrink(self, too_large: MicroBatchTooLarge) -> None:
        """Where the ranks agree on it."""
        if not too_large.is_agreed:  # training would end as well, for another start to go on in smaller parts
            raise too_large
        super().shrink(too_large)

    def stop(self) -> NoReturn:
        """Nothing is saved."""
        self.run.stop.request.leave_measurement()

    def _fail(self, error: HebrewASRError | None) -> NoReturn:
        raise_together(self.run.ranks, error, "nothing is kept of a measurement")

    def finish(self) -> None:
        """Nothing is saved."""
        self._flush()


def ramp_course(recipe: Recipe, phase: int, steps: int, steps_per_epoch: int) -> Course:
    """``steps`` of one phase of a recipe, by its index."""
    only = replace(recipe.phases[phase], epochs=math.ceil(steps / steps_per_epoch))
    recipe = replace(recipe, name="lr-range", phases=[only])
    return RampCourse(recipe=recipe, steps_per_epoch=steps_per_epoch, last_step=steps, eval_clips=0)


def measure(argv: list[str], stop: StopRequest) -> int:
    """Train until the rates are highest or the loss diverges; collective. Returns the exit code."""
    arguments = parse_options(LrRangeArguments, "lr_range.py", argv)
    run = set_up(arguments, stop)
    ramp = Ramp(run.recipe, run.dataset.steps_per_epoch, arguments)
    run = replace(run, schedule=ramp, recipe=replace(run.recipe, rehearse=False))
    if run.console is not None:
        each = run.dataset.steps_per_epoch
        run.console.follow(ramp_course(run.recipe, ramp.phase_of(0), arguments.steps, each))
    test = RangeTest(run)
    train(run, test)
    losses = test.losses
    if run.ranks.is_main:
        factors = [ramp.factor(step) for step in range(len(losses))]
        write_json(arguments.out, {"factors": factors, "losses": only_finite(losses)})
    run.tracker.close()
    run.engine.close()
    dist.stop()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The launcher's entry."""
    return run_rank(measure, argv, resumes=False)


if __name__ == "__main__":
    exit_process(main())
