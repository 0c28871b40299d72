"""Before the first step of a run every phase is tried, with the longest batch, an evaluation and a checkpoint's copy.

So memory that does not suffice, a compiler that fails and a phase that does not train what it should are met in the
first minutes, and not at the change of phase hours later. Then all is undone: weights have the bits that they had, and
optimizer state is begun anew. What was compiled serves the run, which would compile it otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from hebrew_asr.data.loader import StepBatch
from hebrew_asr.engine.engine import MicroBatchTooLarge
from hebrew_asr.engine.kept_weights import KeptWeights
from hebrew_asr.errors import first_line
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.phases import shapes_of
from hebrew_asr.training.feed import to_device
from hebrew_asr.units import GIB
from hebrew_asr.watching.machine import forget_peak

if TYPE_CHECKING:
    from hebrew_asr.training.session import Session
    from hebrew_asr.training.setup import Run

_STEPS = 3
"""Of each phase: one is proved, where recordings are made the next one is recorded, and the third replayed."""


def is_rehearsed(run: Run) -> bool:
    """Whether a run is tried before its first step: as its recipe has it, if this is not a later start of it."""
    asked, begins = run.recipe.rehearse, run.resumable.newest is None
    return begins and (run.profile.compiles if asked is None else asked)


def rehearse(session: Session) -> None:
    """Try what the run is going to do, and undo it; collective.

    A micro-batch that does not fit is halved for the run as well. Clips that cannot be decoded are the run's to report.

    Raises:
        TrainingFault: a phase did not train what it should, or a micro-batch of one clip does not fit.
        OutOfMemory: a micro-batch did not fit where the ranks cannot agree on that; the next start takes smaller ones.
        Preempted: asked to stop.
    """
    run, started = session.run, time.monotonic()
    starts = run.schedule.phase_starts
    phases = [phase for phase, start in zip(run.recipe.phases, starts, strict=True) if start < run.schedule.last_step]
    shapes = shapes_of(run.asr)
    trained = {name for phase in phases for group in phase_groups(shapes, run.recipe, phase) for name in group.weights}
    weights = KeptWeights(run.asr, trained, run.ranks)
    forget_peak(run.ranks)
    for index, phase in enumerate(phases):
        run.now(f"rehearsal of phase {phase.name}: its longest step compiles, which takes up to a minute")
        run.engine.enter_phase(index)
        if not _try_steps(session, index):
            break
        if run.stop.agreed():
            session.stop()
    else:
        run.now("rehearsal of an evaluation and of a checkpoint's copy")
        clips = run.eval_clips if run.recipe.evaluation.full_each_epoch else run.evaluator.sample
        with run.engine.whole_model() as asr:
            run.evaluator.try_longest(asr, clips, run.stop)
        run.engine.host_state()
        if run.stop.agreed():
            session.stop()
        run.say(_found(run, [phase.name for phase in phases], time.monotonic() - started))
        session.still_compiles = False
    run.engine.close()
    weights.put_back()
    torch.cuda.empty_cache()
    forget_peak(run.ranks)


def _try_steps(session: Session, index: int) -> bool:
    """Train phase ``index`` on the longest batch; False if its clips cannot be read."""
    run, tried, batch = session.run, 0, None
    rates = run.schedule.rates(run.schedule.phase_starts[index])
    while tried < _STEPS:
        too_large = None
        try:
            batch = batch or _longest_batch(run)
            if batch is None:
                return False
            run.engine.step(batch.micro_batches, rates)
            run.engine.prove_phase()
            tried += 1
        except MicroBatchTooLarge as error:
            too_large = error.with_traceback(None)  # whose frames hold what is to be freed
            too_large.part += f", rehearsing phase {run.recipe.phases[index].name}"
        if too_large is not None:
            batch = None
            session.shrink(too_large)
    return True


def _longest_batch(run: Run) -> StepBatch | None:
    """What takes most memory of all steps, on the device; None if a rank has no clips for it.

    Raises:
        MicroBatchTooLarge: there was no memory for its features.
    """
    batch = run.dataset.padded_most()[run.dataset.longest_step(run.schedule.last_step)]
    if run.ranks.any(batch.error is not None):
        return None
    no_memory = ""
    try:
        batch = to_device(batch, run.mel, run.ranks.device)
    except torch.OutOfMemoryError as error:
        no_memory = first_line(error)
    reasons = {rank: reason for rank, reason in enumerate(run.ranks.gather(no_memory)) if reason}
    if reasons:
        raise MicroBatchTooLarge("features", [*reasons], True, next(iter(reasons.values())))
    return batch


def _found(run: Run, phases: list[str], took_s: float) -> str:
    tried = f"the longest batch of {'phase' if len(phases) == 1 else 'phases'} {' and '.join(phases)}"
    said = f"rehearsed in {took_s:.0f} s: {tried}, an evaluation and a checkpoint's copy"
    if run.ranks.device.type != "cuda":
        return f"{said} went well"
    most = max(run.ranks.gather(torch.cuda.max_memory_reserved(run.ranks.device)))
    room = torch.cuda.get_device_properties(run.ranks.device).total_memory
    return f"{said} fit, in {most / GIB:.1f} of {room / GIB:.1f} GiB"
