"""A trained run's final model: that of the last step, of the best checkpoint, or the mean of the kept ones.

Whichever has the lowest WER on the whole evaluation split. That of the last step is measured by then; each other one
costs an evaluation of the split, two at the most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch

from hebrew_asr.checkpoints.models import Candidate, candidates, model_of
from hebrew_asr.checkpoints.sealed import newest_whole
from hebrew_asr.errors import CheckpointError, first_line
from hebrew_asr.report.records import EvalRecord, FaultRecord
from hebrew_asr.training.saving import write_model
from hebrew_asr.training.setup import Run

_KEPT = ("wer", "cer", "clips")
Found = TypeVar("Found")


@dataclass
class FinalModel:
    """What became of ``final/``."""

    failure: str | None
    """Why there is none; None where it is written."""
    title: str
    """Such as ``mean (steps 1500, 1565)``."""
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """WER, CER and clips of each model that was compared; empty where none was."""

    def __str__(self) -> str:
        rates = ", ".join(f"{title} {figures['wer']:.2%}" for title, figures in self.measured.items())
        return f"{self.title}{f', by WER on the whole eval split: {rates}' if rates else ''}"


def write_final(run: Run, *, is_saved: bool) -> FinalModel | None:
    """Write the model of the last step as ``final/``, then in its place a better one, if there is; collective.

    Nothing is compared if the recipe says so (``evaluation.choose_final``), if the last step has no evaluation of the
    whole split, if ``max_steps`` ended the run, or if it began with random weights, which cannot be drawn again. What
    goes wrong in comparing is recorded, and the last step's model stays.

    Args:
        run: after its last step.
        is_saved: whether the last step's checkpoint is sealed, so that another model may take its place.

    Returns:
        None if the run was asked to stop while models were compared.
    """
    state, schedule = run.state, run.schedule
    is_measured = state.full is not None and state.full["step"] == state.step
    is_whole = schedule.last_step == schedule.total_steps
    is_base_kept = not run.recipe.model.random_weights  # a host draws others than a GPU, and takes a minute or two
    compares = is_saved and is_whole and is_measured and is_base_kept and run.recipe.evaluation.choose_final
    if not compares:
        run.stop.request.leaving(0)
    with run.engine.whole_model() as asr:
        failure = run.ranks.broadcast(write_model(run, asr) if run.ranks.is_main else None)
        last = FinalModel(failure, f"last (step {state.step})")
        if failure is not None or not compares:
            return last
        try:
            return _choose(run, asr, last)
        except CheckpointError as error:
            _record_fault(run, f"the models could not be compared, so final/ is that of the last step: {error}")
            return last


def _choose(run: Run, asr: Any, final: FinalModel) -> FinalModel | None:
    """Measure each other candidate in ``asr``, whole on this rank, whose weights are lost by that."""
    found = run.ranks.broadcast(_together(run, lambda: candidates(run.folder)))
    others = found[1:]
    for checkpoint in {one.step: one for other in others for one in other.checkpoints}.values():
        newest_whole([checkpoint], run.ranks)
    if not others:
        return final
    run.say(f"comparing {', '.join(candidate.title for candidate in found)} on the whole eval split")
    final.measured[final.title] = {key: (run.state.full or {})[key] for key in _KEPT}
    best: tuple[Candidate, EvalRecord] | None = None
    for other in others:
        _together(run, partial(_load, run, asr, other))
        evaluated = run.evaluator(asr, run.eval_clips, run.state.step, other.kind, run.stop)
        if evaluated is None:
            return None
        if evaluated.record is None:
            continue
        lowest = min(figures["wer"] for figures in final.measured.values())
        final.measured[other.title] = {key: getattr(evaluated.record, key) for key in _KEPT}
        if evaluated.record.wer < lowest:
            best = other, evaluated.record
    if best is not None:
        _replace(run, asr, *best, final, is_loaded=best[0] is others[-1])
    return final


def _replace(run: Run, asr: Any, chosen: Candidate, record: EvalRecord, final: FinalModel, *, is_loaded: bool) -> None:
    if not is_loaded:
        _together(run, partial(_load, run, asr, chosen))
    failure = run.ranks.broadcast(write_model(run, asr) if run.ranks.is_main else None)
    if failure is None:
        final.title = chosen.title
        run.tracker.write(record)
    else:
        _record_fault(run, f"{chosen.title} is better, but could not be written, so final/ is {final.title}: {failure}")


def _load(run: Run, asr: Any, candidate: Candidate) -> None:
    loaded, _ = model_of(run.folder, candidate.checkpoints, verify=False)
    weights = dict(loaded.named_parameters())
    with torch.no_grad():
        for name, parameter in asr.named_parameters():
            parameter.copy_(weights[name])


def _together(run: Run, act: Callable[[], Found]) -> Found:
    """What each rank does by itself; the failure of one is the failure of all. Collective.

    Raises:
        CheckpointError: with the words of the first rank that failed.
    """
    result, reason = None, None
    try:
        result = act()
    except Exception as error:  # files of every kind are read here
        reason = f"{type(error).__name__}: {first_line(error)}"
    reasons = run.ranks.gather(reason)
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise run.ranks.in_common(CheckpointError(f"rank {rank}: {reason}"))
    return cast("Found", result)


def _record_fault(run: Run, reason: str) -> None:
    run.tracker.write(FaultRecord(step=run.state.step, kind="final model", reasons=[reason]))
