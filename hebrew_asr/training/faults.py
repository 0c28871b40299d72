"""Faults of a run: how many it tolerates, and the evidence that it keeps when there are too many."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.checkpoints.store import CheckpointStore
from hebrew_asr.config.recipe import Faults
from hebrew_asr.data.clip_audio import Unreadable
from hebrew_asr.data.loader import MicroBatch, StepBatch
from hebrew_asr.engine.dist import Ranks
from hebrew_asr.errors import DataError, TrainingFault
from hebrew_asr.fallbacks import take_fallbacks
from hebrew_asr.files import as_os_error, write_atomically, write_json
from hebrew_asr.logs import log
from hebrew_asr.report.records import FaultRecord
from hebrew_asr.report.sinks import Tracker
from hebrew_asr.training.train_state import TrainState
from hebrew_asr.units import count


class FaultBudget:
    """Counts skipped steps and unreadable clips, the same on every rank, and gives up past the recipe's limits."""

    def __init__(self, limits: Faults, num_clips: int, ranks: Ranks, unreadable: Iterable[str] = ()):
        """``num_clips``: of the training set, a share of which may be unreadable; ``unreadable``: ids found before."""
        self._limits, self._ranks = limits, ranks
        self._max_unreadable = int(limits.max_unreadable_share * num_clips)
        self._unreadable = set(unreadable)
        self._in_a_row = 0

    def non_finite(self, batch: StepBatch, checkpoints: CheckpointStore) -> FaultRecord:
        """A step was skipped on all ranks for non-finite gradients; collective.

        Raises:
            TrainingFault: one more than the patience, in a row. The state is not worth a checkpoint then, which would
                cost an older one: skipped steps change nothing, but it was like this before the first of them.
        """
        self._in_a_row += 1
        ids = sorted(clip for own in self._ranks.gather(clip_ids(batch)) for clip in own)
        if self._in_a_row > self._limits.non_finite_patience:
            left = _left_before(batch.step + 1 - self._in_a_row, checkpoints)
            fault = TrainingFault(
                f"step {batch.step + 1}: gradients were NaN or infinite {self._in_a_row} steps in a row; the last "
                f"clips were {', '.join(ids[:8])}{', …' if len(ids) > 8 else ''}. Weights that give this so often may "
                f"be spoiled, so they are not saved; {left}. If the clips are at fault, mend them first; if the "
                "learning rates are too high, start another run with lower ones (--run)"
            )
            raise self._ranks.in_common(fault)
        return FaultRecord(step=batch.step + 1, kind="non-finite", clips=ids)

    def finite(self) -> None:
        """A step was applied: skipped steps in a row are counted from 0 again."""
        self._in_a_row = 0

    @property
    def unreadable_ids(self) -> list[str]:
        """Training clips that could not be decoded since the run began, of those that it bore; for its checkpoints."""
        return sorted(self._unreadable)

    def unreadable(self, step: int, own: tuple[Unreadable, ...]) -> tuple[FaultRecord, DataError | None]:
        """Some rank had clips that could not be decoded; collective.

        Returns:
            A record of them; and an error where there are more than the recipe allows, to be raised when what the other
            clips of the step have trained is saved.
        """
        found = sorted((clip for part in self._ranks.gather(own) for clip in part), key=lambda clip: clip.clip_id)
        ids, reasons = [clip.clip_id for clip in found], [str(clip) for clip in found]
        record = FaultRecord(step=step + 1, kind="unreadable", clips=ids, reasons=reasons)
        unreadable = self._unreadable.union(ids)
        if len(unreadable) > self._max_unreadable:  # those of this step do not count after a resume: they may be mended
            return record, DataError(
                f"{count(len(unreadable), 'unreadable clip')}, the recipe allows {self._max_unreadable} "
                f"(mend them, or raise faults.max_unreadable_share); step {step + 1}: {reasons[0]}"
            )
        self._unreadable = unreadable
        return record, None


def _left_before(trained: int, checkpoints: CheckpointStore) -> str:
    """What there is to go on from where no step after step ``trained`` could be applied; collective."""
    checkpoints.finish()
    step = checkpoints.sealed_step
    if step is None:
        return "there is no checkpoint"
    lost = f"{count(trained - step, 'step')} earlier"
    same = "which holds them too: if it ends like this again, move it away, and the one before is taken"
    return f"--resume auto goes on from the checkpoint of step {step}, {lost if step < trained else same}"


def record_earlier(tracker: Tracker, faults: Iterable[FaultRecord | None], step: int) -> None:
    """Record what earlier starts of a run met, which now goes on from ``step``."""
    for fault in filter(None, faults):
        tracker.write(replace(fault, step=step))


def record_fallbacks(tracker: Tracker, ranks: Ranks, state: TrainState) -> None:
    """Record each slower way that any rank has taken since the last call, and keep it in ``state``; collective."""
    by_rank = [[(new.name, new.reason) for new in own] for own in ranks.gather(take_fallbacks())]
    ranks_of: dict[tuple[str, str], list[int]] = {}
    for rank, own in enumerate(by_rank):
        for fallback in dict.fromkeys(own):
            ranks_of.setdefault(fallback, []).append(rank)
    for (name, reason), on in ranks_of.items():
        tracker.write(FaultRecord(step=state.step, kind="fallback", name=name, reason=reason, ranks=on))
        state.fallbacks.append({"step": state.step, "name": name, "reason": reason, "ranks": on})


def clip_ids(batch: StepBatch) -> list[str]:
    """Clips of this rank's share that count."""
    return [clip for micro in batch.micro_batches if micro.num_labels for clip in micro.packed.clip_ids]


def keep_evidence(folder: Path, rank: int, error: BaseException, batch: StepBatch | None) -> None:
    """Write ``crash/rank<N>/``: the traceback, the step's clips with their durations and shapes, device memory.

    If the disk does not take it, a warning says so; the error itself is raised in any case.
    """
    folder = folder / "crash" / f"rank{rank}"
    try:
        _write_evidence(folder, error, batch)
    except OSError as failure:
        log.warning("no evidence in %s: %s", folder, as_os_error(failure).strerror)


def _write_evidence(folder: Path, error: BaseException, batch: StepBatch | None) -> None:
    write_atomically(folder / "error.txt", "".join(traceback.format_exception(error)))
    if batch is not None:
        micro_batches = [_describe(micro) for micro in batch.micro_batches]
        write_json(folder / "batch.json", {"step": batch.step + 1, "micro_batches": micro_batches})
    if torch.cuda.is_available():
        write_atomically(folder / "memory.txt", torch.cuda.memory_summary())


def _describe(micro: MicroBatch) -> dict[str, object]:
    packed, mel_CBF = micro.packed, micro.mel_CBF
    return {
        "clips": packed.clip_ids,
        "durations_s": [round(count / SAMPLE_RATE_HZ, 3) for count in packed.samples],
        "tokens": packed.tokens,
        "labels": packed.labels_per_clip,
        "mel_shape": None if mel_CBF is None else list(mel_CBF.shape),
    }
