"""The training loop."""

from __future__ import annotations

from hebrew_asr.errors import HebrewASRError, Preempted, TrainingFault, Unsaved
from hebrew_asr.training.faults import keep_evidence
from hebrew_asr.training.rehearsal import is_rehearsed, rehearse
from hebrew_asr.training.session import Session
from hebrew_asr.training.setup import Run


def train(run: Run, session: Session | None = None) -> None:
    """Train from ``run.state`` to the end of the recipe; collective. ``session``: of another kind than ``Session``.

    Raises:
        Preempted: asked to stop; says what is saved.
        Unsaved: the disk did not take the state at a stop, or the model at the end.
        TrainingFault: a phase did not train what it should, or gradients stayed non-finite.
        OutOfMemory: it ran out where the ranks cannot agree on that; a resumed run goes on in smaller parts.
        DataError: more clips cannot be decoded than the recipe allows.
        EnvironmentProblem: loader processes were killed, or where the clips lie does not answer.
    """
    session = session or Session(run)
    try:
        session.open()
        if is_rehearsed(run):
            rehearse(session)
        session.start()
        for batch in session.steps():
            session.enter_phase_if_due()
            result = session.step(batch)
            if result is None:
                continue
            session.record(batch, result)
            session.save_if_due()
            session.evaluate_if_due()
        session.finish()
    except (Preempted, Unsaved):
        raise
    except Exception as error:
        if run.stop.leaves_empty_handed():  # another rank has left already
            raise
        keep_evidence(run.folder, run.ranks.rank, error, session.batch)
        dead = run.watchdog.dead_peer()
        if dead is not None and not isinstance(error, HebrewASRError):
            raise TrainingFault(f"rank {run.ranks.rank}: rank {dead} died after step {run.state.step}") from error
        raise
    finally:
        run.watchdog.stand_down()
