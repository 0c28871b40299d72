"""``hebrew-asr lr-range``: which learning rates a model and its data bear, before a run is spent on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hebrew_asr.commands.ranks import RankArguments
from hebrew_asr.config.options import Out
from hebrew_asr.config.values import PositiveFloat, PositiveInt
from hebrew_asr.training.arguments import DataArguments

if TYPE_CHECKING:
    from hebrew_asr.config.recipe import Recipe
    from hebrew_asr.planning.lr_curve import LrCurve

_ROWS, _BAR = 20, 40
_NOTHING_KEPT = (
    "evaluation.at_start=false",
    "logging.wandb=false",
    "logging.report=false",
    "logging.every_steps=1",
)


@dataclass
class Command(RankArguments, DataArguments):
    """Train some steps of one phase with rates that rise exponentially, and say where the loss fell and where it burst.

    Nothing is saved but --out. All module groups keep the proportion that the recipe gives their rates.

    $ hebrew-asr lr-range --ds h200x1 --data mine --phase B
    """

    phase: str | None = None
    """Which phase trains; the first unless given."""
    steps: PositiveInt = 100
    """Steps from the lowest rates to the highest; fewer if the loss diverges before."""
    lowest: PositiveFloat = 0.01
    """First rates, of the recipe's."""
    highest: PositiveFloat = 100.0
    """Last rates, of the recipe's."""
    out: Out[str | None] = None
    """Also write the curve here, as JSON: the factor of the recipe's rates and the loss, by step."""

    def run(self) -> int:
        from hebrew_asr.commands.ours import make_folder, refuse_overwriting
        from hebrew_asr.errors import UsageError
        from hebrew_asr.files import temporary_folder, write_json
        from hebrew_asr.launching.command import stopped_at_once
        from hebrew_asr.planning.lr_curve import lr_curve

        recipe = self.load_recipe()
        names = [phase.name for phase in recipe.phases]
        phase = names[0] if self.phase is None else self.phase
        if phase not in names:
            raise UsageError(f"recipe {recipe.name} has no phase {phase}; it has {', '.join(names)}")
        if self.lowest >= self.highest:
            raise UsageError(f"--lowest {self.lowest:g} must be below --highest {self.highest:g}")
        if self.out:
            refuse_overwriting(Path(self.out), '"factors"')
            make_folder(Path(self.out).parent)
        # On the disk that a run would be on: its room is checked as for a run.
        with temporary_folder(".lr-range-", Path.cwd()) as folder, stopped_at_once(resumes=False):
            folder.mkdir(mode=0o700)
            curve = folder / "curve.json"
            code = self._measure(phase, folder / "run", curve)
            if code:
                return code
            values = json.loads(curve.read_text(encoding="utf-8"))
        _print_curve(recipe, names.index(phase), lr_curve(**values))
        if self.out:
            write_json(Path(self.out), values)
        return 0

    def _measure(self, phase: str, run: Path, out: Path) -> int:
        from hebrew_asr.planning import lr_range

        limits = [f"max_steps={self.steps}", f"faults.non_finite_patience={self.steps}"]
        arguments = lr_range.LrRangeArguments(
            ds=self.ds,
            recipe=self.recipe,
            set=[*self.set, *_NOTHING_KEPT, *limits],
            data=self.data,
            run_dir=str(run),
            phase=phase,
            steps=self.steps,
            lowest=self.lowest,
            highest=self.highest,
            out=out,
        )
        return self.measure(Path(lr_range.__file__), arguments)


def _print_curve(recipe: Recipe, index: int, curve: LrCurve) -> None:
    phase = recipe.phases[index]
    least, most = min(curve.smoothed), max(curve.smoothed)
    print(f"phase {phase.name}: factor of the recipe's rates, and the smoothed loss")
    for step in range(0, len(curve.factors), max(1, len(curve.factors) // _ROWS)):
        loss = curve.smoothed[step]
        bar = "█" * round(1 + _BAR * (loss - least) / max(most - least, 1e-9))
        print(f"  × {curve.factors[step]:<8.3g} {loss:9.4f}  {bar}")
    end = "then it diverged" if curve.diverged else "it did not diverge: a higher --highest says more"
    print(f"lowest loss at × {curve.lowest:.3g}; {end}")
    if curve.suggested is None:
        fell = "fell for too few steps to judge by" if curve.lowest > curve.factors[0] else "did not fall"
        print(f"no suggestion: the loss {fell}; try a lower --lowest, or more --steps")
        return
    rates = {group: float(f"{rate * curve.suggested:.1e}") for group, rate in phase.learning_rates.items()}
    print(f"suggested: × {curve.suggested:.2g}, so --set 'phases.{index}.learning_rates={json.dumps(rates)}'")
