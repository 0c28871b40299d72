"""The end of a run: its summary, the finished model, and what is said of checkpoints that could not be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hebrew_asr.checkpoints.store import CheckpointStore, Outcome
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import HebrewASRError
from hebrew_asr.files import as_os_error, is_full, write_json
from hebrew_asr.inference.export import save_native
from hebrew_asr.inference.load import cutting_of_run
from hebrew_asr.report.records import CheckpointRecord, FaultRecord
from hebrew_asr.training.arguments import SUMMARY
from hebrew_asr.training.setup import Run
from hebrew_asr.training.train_state import TrainState
from hebrew_asr.units import count

_SHARE_FOR_WRITING = 0.6
"""Share of the launcher's patience that a checkpoint may take; the rest is for the step under way and a busier disk."""


def checkpoint_record(outcome: Outcome, run_folder: Path) -> CheckpointRecord | FaultRecord:
    """The record of a checkpoint that is sealed, or the fault of one that could not be."""
    if outcome.failure is not None:
        return FaultRecord(step=outcome.step, kind="checkpoint", reasons=[outcome.failure])
    path = str(outcome.path.relative_to(run_folder))
    return CheckpointRecord(step=outcome.step, path=path, write_s=round(outcome.write_s, 3))


def slow_disk_advice(write_s: float | None, patience_s: float | None, run_folder: Path) -> str | None:
    """What to do where the last checkpoint took so long that the launcher would not wait for one; None elsewhere.

    Args:
        write_s: seconds that it took to write; None if there has been none.
        patience_s: seconds that the launcher waits for its ranks; None for as long as they need.
        run_folder: where a file STOP would be looked for.
    """
    if write_s is None or patience_s is None or write_s < _SHARE_FOR_WRITING * patience_s:
        return None
    return (
        f"a checkpoint takes {write_s:.0f} s to write here, and the launcher kills ranks {patience_s:.0f} s "
        f"after Ctrl-C or SIGTERM: stop by touch {run_folder / 'STOP'}, or start by hebrew-asr train, which waits"
    )


class SlowDisk:
    """Says :func:`slow_disk_advice` when it begins to hold, and again when it does so anew."""

    def __init__(self, run: Run):
        self._run, self._is_known = run, False

    def warn(self) -> None:
        """After each checkpoint."""
        run = self._run
        advice = slow_disk_advice(run.state.write_s, run.stop.request.patience_s, run.folder)
        if advice is not None and not self._is_known:
            run.say(advice)
        self._is_known = advice is not None


def what_a_stop_takes(state: TrainState) -> str:
    """What a run does first when it is asked to stop."""
    if not state.step:
        return "finishing what is under way; before step 1 is trained there is nothing to save"
    takes = "" if state.write_s is None else f", which took {state.write_s:.0f} s the last time"
    return f"finishing what is under way after step {state.step}, then saving{takes}"


def values_of(run: Run) -> dict[str, Any]:
    """What a checkpoint of the step that ``run.state`` is at says besides weights."""
    state = run.state
    return {
        "state": state.to_dict(),
        "wer": state.wer_last if state.wer_step == state.step else None,
        "wer_of": state.wer_of,
        "recipe": run.recipe.to_dict(),
        "base_model": run.base.to_dict(),
        "precision": run.profile.precision,
        "data": run.data_fingerprint,
    }


def stopped(run: Run, failure: str | None) -> str:
    """What is left of a run that ends before its last step. ``failure``: why its state could not be saved."""
    step = run.state.step
    if not step:
        return "stopped before a step was trained"
    if failure is not None:
        return f"stopped after step {step}, but {unsaved(run.checkpoints, step, failure)}"
    return f"stopped after step {step}, state saved in {run.folder}; go on with --resume auto"


def raise_together(ranks: Ranks, own: HebrewASRError | None, left: str) -> NoReturn:
    """Raise on every rank what the first of those raises that found something, which the first rank prints; collective.

    Args:
        ranks: all of them.
        own: what this rank found.
        left: what is left of the run, to be said with it.
    """
    found = ranks.gather(own)
    rank, error = next((rank, error) for rank, error in enumerate(found) if error is not None)
    where = f"rank {rank}: " if None in found else ""
    raise ranks.in_common(type(error)(f"{where}{error}; {left}")) from own


def unsaved(store: CheckpointStore, step: int, failure: str) -> str:
    """What is lost when the process ends at ``step`` and its state could not be saved, and what to do."""
    if store.sealed_step is None:
        left = f"there is no checkpoint: all {step} steps are lost"
    else:
        lost = step - store.sealed_step
        left = f"the newest checkpoint is of step {store.sealed_step} and lacks {count(lost, 'step')}"
    return f"its state could not be saved ({failure}); {left}. Mend the disk or make room, then --resume auto"


def without_model(run: Run, step: int, failure: str, checkpoint_failure: str | None) -> str:
    """What there is of a trained run whose model could not be written, and what to do."""
    state = f"all {step} steps are trained, but the model could not be written to {run.folder / 'final'} ({failure})"
    if checkpoint_failure is not None:
        return f"{state}, and {unsaved(run.checkpoints, step, checkpoint_failure)}"
    return f"{state}. Nothing is lost: make room, and the same command with --resume auto writes it"


def summary_of(
    run: Run, seconds: float, head_row_norms: dict[str, float | None], final: dict[str, Any]
) -> dict[str, Any]:
    """Content of ``summary.json``.

    Its first, last and best WER are of the same clips, the sample's, which ``wer_of`` names; ``full`` is the last
    evaluation of the whole split that training made, and ``final`` says which model ``final/`` is.

    Args:
        run: after its last step.
        seconds: of all its sessions.
        head_row_norms: as they are after the last step.
        final: ``model``, and in ``compared`` WER, CER and clips of each model that it was chosen among.
    """
    state = run.state
    return {
        "wer_first": state.wer_first,
        "wer_final": state.wer_last,
        "wer_best": state.best_wer,
        "wer_best_step": state.best_step,
        "wer_of": state.wer_of,
        "wer_mode": run.recipe.evaluation.wer_mode,
        "full": state.full,
        "final": final,
        "steps": state.step,
        "phase_switch_step": state.phase_switch_step,
        "head_row_norms": {"start": state.head_row_norms, "end": head_row_norms},
        "seconds": round(seconds, 1),
        "fallbacks": state.fallbacks,
    }


def write_model(run: Run, asr: Any) -> str | None:
    """Write ``final/``, whole or not at all, in place of an earlier one; on rank 0.

    Returns:
        Why it could not be written, if it could not.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in asr.parameters())
    cutting = cutting_of_run(run.folder)
    return _in_place_of_checkpoints(run, size, lambda: save_native(run.folder / "final", asr, run.tokenizer, cutting))


def write_summary(run: Run, summary: dict[str, Any]) -> str | None:
    """Write ``summary.json``, after which the run counts as finished; as :func:`write_model`."""
    return _in_place_of_checkpoints(run, 0, lambda: write_json(run.folder / SUMMARY, summary))


def _in_place_of_checkpoints(run: Run, size: int, write: Callable[[], None]) -> str | None:
    """Write ``size`` bytes, at the cost of old checkpoints where there is no room; returns why not, if it fails."""
    while True:
        try:
            run.checkpoints.make_room(size)
            write()
            return None
        except OSError as failure:
            error = as_os_error(failure)
            if not (is_full(error) and run.checkpoints.drop_oldest()):
                return error.strerror
