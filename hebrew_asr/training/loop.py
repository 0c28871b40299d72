"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from hebrew_asr.data.loader import load_steps
from hebrew_asr.engine.engine import StepResult
from hebrew_asr.engine.state import StateReader
from hebrew_asr.errors import Preempted
from hebrew_asr.files import write_json
from hebrew_asr.model.export import save_native
from hebrew_asr.training.evaluate import stratified_sample
from hebrew_asr.training.feed import FedStep, feed
from hebrew_asr.training.setup import Run


def train(run: Run) -> None:
    """Train from ``run.state`` to the end of the recipe; collective.

    Raises:
        Preempted: asked to stop; the state is saved.
        TrainingFault: a phase did not train what it should.
        DataError: a clip cannot be decoded.
    """
    state, recipe, session = run.state, run.recipe, Session(run)
    session.start()
    for fed in session.steps():
        session.enter_phase_if_due()
        result = session.step(fed)
        state.step += 1
        session.record(result, fed.wait_s)
        if session.is_epoch_end and recipe.evaluation.full_each_epoch:
            session.evaluate(run.eval_clips, "eval")
        elif state.step % recipe.evaluation.every_steps == 0 or session.is_done:
            session.evaluate(session.sample, "sample")
        if state.step % recipe.checkpoints.every_steps == 0 and not session.is_done:
            session.save()
        if not session.is_done and run.stop.agreed():
            session.save()
            raise Preempted(f"stopped after step {state.step}, state saved in {run.folder}; go on with --resume auto")
    session.finish()


class Session:
    """One process's part of a run, from start or resume to finish or stop."""

    def __init__(self, run: Run):
        """Nothing happens yet."""
        self.run, self.state = run, run.state
        self.last_step = min(run.schedule.total_steps, run.recipe.max_steps or run.schedule.total_steps)
        self.sample = stratified_sample(run.eval_clips, run.recipe.evaluation.sample_clips)
        self._phase = -1
        self._started = self._step_started = time.monotonic()
        self._seconds_before = run.state.seconds
        self._pending: list[tuple[dict[str, Any], StepResult]] = []
        self._saved_step = run.state.step if run.resumed_from else -1

    @property
    def is_done(self) -> bool:
        """Whether the last step has been taken."""
        return self.state.step >= self.last_step

    @property
    def is_epoch_end(self) -> bool:
        """Whether the step just taken was an epoch's last."""
        return self.state.step % (self.run.schedule.total_steps // self.run.recipe.epochs) == 0

    def start(self) -> None:
        """Build the first engine, restore a resumed one, and measure the base model."""
        run = self.run
        run.stop.install()
        self._phase = run.schedule.phase_of(self._engine_step())
        if run.resumed_from is None:
            run.engine.enter_phase(self._phase)
            run.say(f"step 0: {run.recipe.phases[self._phase].title}")
            if run.recipe.evaluation.at_start:
                self.evaluate(self.sample, "sample")
            return
        reader = StateReader(run.resumed_from.path)
        run.engine.enter_phase(self._phase, reader)
        reader.close()

    def _engine_step(self) -> int:
        """The step whose phase the engine is in: a checkpoint at a boundary is taken before the switch."""
        return max(0, self.state.step - 1)

    def steps(self) -> Iterator[FedStep]:
        """This rank's steps from here to the end."""
        run = self.run
        pin_memory = run.ranks.device.type == "cuda"
        workers = run.recipe.data.workers
        steps = load_steps(run.dataset, self.state.step, self.last_step, workers=workers, pin_memory=pin_memory)
        fed_steps = feed(steps, run.mel, run.ranks.device)
        while True:
            self._step_started = time.monotonic()  # so that a step's time holds its wait for data
            fed = next(fed_steps, None)
            if fed is None:
                return
            yield fed

    def enter_phase_if_due(self) -> None:
        """At the first step of a later phase: rebuild the engine over its groups, carrying the state."""
        run, phase = self.run, self.run.schedule.phase_of(self.state.step)
        if phase == self._phase:
            return
        self._phase = phase
        self._flush()
        if self.state.phase_switch_step is None:
            self.state.phase_switch_step = self.state.step
        run.engine.enter_phase(phase)
        run.say(f"step {self.state.step}: {run.recipe.phases[phase].title}; a small rise of the loss is expected")

    def step(self, fed: FedStep) -> StepResult:
        """One optimizer step, and the proof of phase after the first of each phase."""
        run = self.run
        result = run.engine.step(fed.micro_batches, run.schedule.rates(self.state.step))
        proved = run.engine.prove_phase()
        if proved is not None:
            name = run.recipe.phases[self._phase].name
            run.tracker.write({"event": "phase", "step": self.state.step, "name": name, **proved})
        return result

    def record(self, result: StepResult, wait_s: float) -> None:
        """Keep the step's figures; they are read off the device every ``logging.every_steps`` steps."""
        run, step = self.run, self.state.step
        clips = [run.train_clips[index] for index in run.dataset.clips_of_step(step - 1)]
        record = {
            "event": "train",
            "step": step,
            "epoch": (step - 1) // (run.schedule.total_steps // run.recipe.epochs) + 1,
            "phase": run.recipe.phases[self._phase].name,
            "lr": run.schedule.rates(step - 1),
            "clips": len(clips),
            "audio_s": round(sum(clip.duration_s for clip in clips), 3),
            "step_s": time.monotonic() - self._step_started,
            "data_wait_s": wait_s,
        }
        self._pending.append((record, result))
        if step % run.recipe.logging.every_steps == 0 or self.is_done:
            self._flush()

    def _flush(self) -> None:
        for record, result in self._pending:
            norm = None if result.grad_norm is None else float(result.grad_norm)
            measured = {"loss": float(result.loss), "grad_norm": norm, "tokens": int(result.num_labels)}
            self.run.tracker.write({**record, **measured})
        self._pending.clear()

    def evaluate(self, clips: list[Any], split: str) -> None:
        """Measure WER and CER."""
        self._flush()
        with self.run.engine.full_weights():
            record = self.run.evaluator(clips, self.state.step, split)
        self.run.tracker.write(record)
        state = self.state
        state.wer_first = record["wer"] if state.wer_first is None else state.wer_first
        state.wer_last = record["wer"]
        state.best_wer = min(record["wer"], state.best_wer if state.best_wer is not None else record["wer"])

    def save(self) -> None:
        """Write a checkpoint, unless this step's is there."""
        self._flush()
        if self._saved_step == self.state.step:
            return
        self._saved_step = self.state.step
        self.state.seconds = self._seconds()
        values = {"state": self.state.to_dict(), "wer": self.state.wer_last, "recipe": self.run.recipe.name}
        path = self.run.checkpoints.save(self.run.engine, self.state.step, values)
        self.run.tracker.write(
            {"event": "checkpoint", "step": self.state.step, "path": str(path.relative_to(self.run.folder))}
        )

    def finish(self) -> None:
        """Save the last checkpoint and the model, and sum the run up."""
        run, state = self.run, self.state
        run.stop.restore()
        self.save()
        with run.engine.full_weights():
            if run.ranks.is_main:
                save_native(run.folder / "final", run.asr, run.tokenizer)
        if run.ranks.is_main:
            summary = {
                "wer_first": state.wer_first,
                "wer_final": state.wer_last,
                "wer_mode": run.recipe.evaluation.wer_mode,
                "steps": state.step,
                "phase_switch_step": state.phase_switch_step,
                "seconds": round(self._seconds(), 1),
            }
            write_json(run.folder / "summary.json", summary)
            run.say(f"done: {state.step} steps in {self._seconds():.0f} s; model in {run.folder / 'final'}")
        run.ranks.barrier()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started
