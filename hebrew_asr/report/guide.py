"""The guide's table of losses beside a run of its recipe, in nats per supervised token.

The guide's trainer adds up the losses of 2 micro-batches and 8 ranks, so its numbers are 16 times a mean per token and
are divided by that here. Its labels also hold padding, which is easily learned: they lie somewhat too low.
"""

from __future__ import annotations

from statistics import fmean

from hebrew_asr.report.gather import RunHistory

RECIPE = "round2"
NOTE = "the guide's numbers are 16 times a mean per token, and are divided by that here"
_EARLY = {100: (6.3, 7.5), 500: (3.1, 3.4)}
_LAST = (0.9, 1.6)
_AVERAGED = 10


def guide_loss(step: int, last_step: int) -> str | None:
    """What the guide expects after ``step`` of ``last_step`` steps of its recipe; None where it says nothing."""
    found = _LAST if step == last_step else _EARLY.get(step)
    return None if found is None else f"{found[0]} to {found[1]}"


def beside_the_guide(run: RunHistory) -> list[tuple[int, str, float]]:
    """Step, the guide's loss and the run's own, a mean of ten steps; empty for another recipe than the guide's."""
    if run.recipe.get("name") != RECIPE:
        return []
    rows = []
    for place, record in enumerate(run.steps):
        told = guide_loss(record.step, run.planned_steps)
        if told is not None:
            rows.append(
                (record.step, told, fmean(one.loss for one in run.steps[max(0, place - _AVERAGED + 1) : place + 1]))
            )
    return rows
