"""Before the first step of a run every phase is tried, on the longest batch, and an evaluation and a checkpoint's copy.

So memory that does not suffice, a compiler that fails and a phase that does not train what it should are met in the
first minutes, and not at the change of phase hours later. Then all is undone: weights have the bits that they had, and
optimizer state is begun anew. What was compiled serves the run, which would compile it otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from hebrew_asr.config.recipe import Phase
from hebrew_asr.data.loader import StepBatch
from hebrew_asr.engine import garbage
from hebrew_asr.engine.engine import MicroBatchTooLarge
from hebrew_asr.engine.kept_weights import KeptWeights
from hebrew_asr.engine.optimizer_state import num_bytes
from hebrew_asr.errors import EnvironmentProblem, first_line
from hebrew_asr.model.groups import phase_groups
from hebrew_asr.model.phases import shapes_of
from hebrew_asr.training.feed import features_too_large, to_device
from hebrew_asr.units import count, gib
from hebrew_asr.watching.machine import forget_peak

if TYPE_CHECKING:
    from hebrew_asr.training.session import Session
    from hebrew_asr.training.setup import Run

_STEPS = 3
"""Of each phase: one is proved, where recordings are made the next one is recorded, and the third replayed."""


def is_rehearsed(run: Run) -> bool:
    """Whether a run is tried before its first step: as its recipe has it, unless it goes on from a checkpoint."""
    return run.resumable.newest is None and run.profile.rehearses(run.recipe)


def rehearse(session: Session) -> None:
    """Try what the run is going to do, and undo it; collective.

    A micro-batch that does not fit is halved for the run as well. A batch that has no clips, or whose gradients are
    not finite, ends the rehearsal with a line: such steps are the run's to report.

    Raises:
        TrainingFault: a phase did not train what it should, or a micro-batch of one clip does not fit.
        OutOfMemory: a micro-batch did not fit where the ranks cannot agree on that; the next start takes smaller ones.
        EnvironmentProblem: not even one clip of an evaluation fits.
        torch.OutOfMemoryError: AdamW's step did not, on this rank.
        Preempted: asked to stop.
    """
    run, started = session.run, time.monotonic()
    starts = run.schedule.phase_starts
    phases = [phase for phase, start in zip(run.recipe.phases, starts, strict=True) if start < run.schedule.last_step]
    last_groups = phase_groups(shapes_of(run.asr), run.recipe, phases[-1])  # groups join, and none leaves
    weights = KeptWeights(run.asr, {name for group in last_groups for name in group.weights}, run.ranks)
    forget_peak(run.ranks)
    failure = ""
    for index, phase in enumerate(phases):
        failure = failure or _try_phase(session, index, phase)
    if not failure:
        found = _try_interruptions(session)
        tried = f"{'phases' if len(phases) > 1 else 'phase'} {' and '.join(phase.name for phase in phases)}"
        run.say(f"rehearsed {tried} on the longest batch, {found}, in {time.monotonic() - started:.0f} s")
        session.still_compiles = False
    else:
        run.say(f"not rehearsed: {failure}")
    run.engine.close()
    weights.put_back()
    garbage.set_aside()
    torch.cuda.empty_cache()
    forget_peak(run.ranks)
    run.now("all of the rehearsal is undone, and the run begins")


def _try_phase(session: Session, index: int, phase: Phase) -> str:
    """Train a phase on the longest batch; returns why it could not be tried, or nothing."""
    run, tried, is_proved = session.run, 0, False
    batch: StepBatch | str | None = None
    compiles = ", which compiles for up to a minute" if run.profile.compiles else ""
    run.now(f"rehearsing phase {phase.name}{compiles}")
    run.engine.enter_phase(index)
    rates = run.schedule.rates(run.schedule.phase_starts[index])
    while tried < _STEPS:
        too_large = None
        try:
            batch = batch or _longest_batch(run)
            if isinstance(batch, str):
                return batch
            run.engine.step(batch.micro_batches, rates)
            is_proved |= run.engine.prove_phase() is not None
            tried += 1
        except MicroBatchTooLarge as error:
            too_large = error.with_traceback(None)  # whose frames hold what is to be freed
            too_large.part += f", rehearsing phase {phase.name}"
        if too_large is not None:
            tried, is_proved, batch = 0, False, None
            session.shrink(too_large)
    if run.stop.agreed():
        session.stop()
    return "" if is_proved else f"gradients of phase {phase.name} were NaN or infinite in {_STEPS} steps"


def _longest_batch(run: Run) -> StepBatch | str:
    """The step of the run that has most sound, on the device; or why a rank has no clips for it.

    Raises:
        MicroBatchTooLarge: there was no memory for its features.
    """
    batch = run.dataset[run.dataset.longest_step(run.schedule.last_step)]
    no_clips = run.ranks.reasons("" if batch.error is None else str(batch.error))
    if no_clips:
        return next(iter(no_clips.values()))
    no_memory = ""
    try:
        batch = to_device(batch, run.mel, run.ranks.device)
    except torch.OutOfMemoryError as error:
        no_memory = first_line(error)
    if reasons := run.ranks.reasons(no_memory):
        raise features_too_large(reasons)
    return batch


def _try_interruptions(session: Session) -> str:
    """Decode the longest clips and copy the state, in the last phase, which holds the most; returns what was done."""
    run, no_memory, clips = session.run, "", 0
    run.now("rehearsing an evaluation and a checkpoint's copy")
    split = run.eval_clips if run.recipe.evaluation.full_each_epoch else run.evaluator.sample
    with run.engine.whole_model() as asr:
        try:
            clips = run.evaluator.try_longest(asr, split, run.stop)
        except EnvironmentProblem as error:
            no_memory = str(error)
    for rank, reason in run.ranks.reasons(no_memory).items():
        raise run.ranks.in_common(EnvironmentProblem(f"rehearsing an evaluation, rank {rank}: {reason}"))
    copied = num_bytes(run.engine.host_state())
    if run.stop.agreed():
        session.stop()
    memory = ""
    if run.ranks.device.type == "cuda":
        most = max(run.ranks.gather(torch.cuda.max_memory_reserved(run.ranks.device)))
        room = torch.cuda.get_device_properties(run.ranks.device).total_memory
        memory = f", in {gib(most)} of {gib(room)}"
    clips, copied = sum(run.ranks.gather(clips)), sum(run.ranks.gather(copied))
    return f"decoded the longest {count(clips, 'clip')}, copied {gib(copied)} of state{memory}"
