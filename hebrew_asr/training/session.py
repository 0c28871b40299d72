"""What each line of ``loop.py`` does, in one process, from start or resume to finish or stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import torch

from hebrew_asr.checkpoints.store import Outcome
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.loader import StepBatch
from hebrew_asr.data.mixture import counts_by_set
from hebrew_asr.engine.engine import MicroBatchTooLarge, StepResult
from hebrew_asr.engine.optimizer_state import StateReader
from hebrew_asr.errors import HebrewASRError, Preempted, TrainingFault, Unsaved, first_line
from hebrew_asr.evaluation.evaluator import what_is_measured
from hebrew_asr.fallbacks import any_new_fallback
from hebrew_asr.launching.command import next_commands
from hebrew_asr.launching.stopping import nothing_to_save
from hebrew_asr.report.records import PhaseRecord, TrainRecord
from hebrew_asr.training import saving
from hebrew_asr.training.faults import FaultBudget, record_earlier, record_fallbacks
from hebrew_asr.training.feed import features_too_large, feed
from hebrew_asr.training.final_model import write_final
from hebrew_asr.training.loading import load_steps
from hebrew_asr.training.out_of_memory import fault_record, smaller_batching
from hebrew_asr.training.setup import Run
from hebrew_asr.watching.machine import forget_peak, is_machine_read, read_machine


class Session:
    """A run between two starts of its processes."""

    def __init__(self, run: Run):
        """Nothing is trained yet."""
        self.run, self.state = run, run.state
        self.batch: StepBatch | None = None
        """The step in training, for evidence if it fails."""
        self.still_compiles = run.profile.compiles  # in the first step of a phase, unless it was rehearsed
        self._steps_per_epoch = run.schedule.total_steps // run.recipe.epochs
        self._faults = FaultBudget(run.recipe.faults, len(run.train_clips), run.ranks, run.state.unreadable_clips)
        self._some_skipped, self._phase = False, -1
        self._started = self._step_started = time.monotonic()
        self._seconds_before = run.state.seconds
        self._pending: list[tuple[TrainRecord, StepBatch, StepResult]] = []
        """Steps whose figures have not been read: the device may still be at them."""
        self._records: list[TrainRecord] = []  # to be written
        self._slow_disk = saving.SlowDisk(run)
        run.stop.request.explain = lambda: saving.what_a_stop_takes(run.state)

    @property
    def is_done(self) -> bool:
        """Whether the last step has been taken."""
        return self.state.step >= self.run.schedule.last_step

    def open(self) -> None:
        """Tell what earlier starts met, and begin to load steps before this process grows: loaders are copies of it."""
        record_earlier(self.run.tracker, [*self.run.resumable.faults, self.run.out_of_memory], self.state.step)
        self._load()

    def _load(self) -> None:
        run, span = self.run, (self.state.step, self.run.schedule.last_step)
        on_gpu = run.ranks.device.type == "cuda"
        loaded = load_steps(run.dataset, *span, workers=run.recipe.data.workers, pin_memory=on_gpu)
        self._feed = feed(loaded, run.mel, run.ranks.device, run.stop.is_raised)

    def start(self) -> None:
        """Build the first engine or restore a resumed one, and measure what is still to be measured at this step."""
        run = self.run
        # A checkpoint at a phase's end is written before the switch, with the groups of the step before it.
        self._phase = run.schedule.phase_of(max(0, self.state.step - 1))
        if (resume := run.resumable.newest) is None:
            run.engine.enter_phase(self._phase)
            self.state.head_row_norms = run.engine.head_row_norms()
            run.say(f"step 0: {self._title()}")
        else:
            with StateReader(resume.path) as reader:
                run.engine.enter_phase(self._phase, reader)
        self._slow_disk.warn()
        self.evaluate_if_due()
        self._say_what_takes_time()

    def steps(self) -> Iterator[StepBatch]:
        """This rank's steps, from the present one to the last.

        Before each step the ranks agree whether to stop: one that waits for data would not notice that the others do.
        After an out-of-memory error the same step is yielded again, in smaller micro-batches. If a rank gets no data
        for a step, all save and leave.
        """
        run = self.run
        try:
            while not self.is_done:
                self._step_started = time.monotonic()  # so that a step's time holds its wait for data
                self.batch, no_memory, failure = None, "", None
                try:
                    self.batch = next(self._feed, None)
                except torch.OutOfMemoryError as error:
                    no_memory = first_line(error)
                except HebrewASRError as error:
                    failure = error
                skipped = self.batch is not None and bool(self.batch.skipped)
                asked, self._some_skipped, short, slower, failed = run.ranks.any_of(
                    run.stop.is_raised(), skipped, bool(no_memory), any_new_fallback(), failure is not None
                )
                if slower:
                    record_fallbacks(self.run.tracker, self.run.ranks, self.state)
                if asked:
                    self.stop()
                if failed:
                    self._fail(failure)
                if short:
                    self.shrink(features_too_large(run.ranks.reasons(no_memory)))
                    continue
                assert self.batch is not None
                yield self.batch
        finally:
            self._feed.close()

    def enter_phase_if_due(self) -> None:
        """At the first step of a later phase: rebuild the engine over its groups, carrying the state."""
        run, phase = self.run, self.run.schedule.phase_of(self.state.step)
        if phase == self._phase:
            return
        self._phase = phase
        self._flush()
        self.state.phase_switch_step = self.state.phase_switch_step or self.state.step
        if self.still_compiles and self._save_for_good() is None:
            run.stop.request.unsaved = False  # a stop need not wait for the compiler
        run.say(f"step {self.state.step}: {self._title()}; a small rise of the loss is expected")
        run.engine.enter_phase(phase)
        self._say_what_takes_time()

    def _title(self) -> str:
        title, mixture = self.run.recipe.phases[self._phase].title, self.run.dataset.mixture
        return title if mixture is None else f"{title}; {mixture.told(self._phase)}"

    def _say_what_takes_time(self) -> None:
        if self.still_compiles:
            self.run.now("the phase's first step compiles: up to a minute, or less where it was done before")

    def step(self, batch: StepBatch) -> StepResult | None:
        """One optimizer step, and the proof of phase after the first of each phase.

        None if device memory ran out: nothing was applied, and ``steps`` yields the step again in smaller parts.

        Raises:
            OutOfMemory: it ran out where the ranks cannot agree on that; a resumed run goes on in smaller parts.
        """
        run = self.run
        try:
            result = run.engine.step(batch.micro_batches, run.schedule.rates(self.state.step))
        except MicroBatchTooLarge as error:
            result = error.with_traceback(None)  # whose frames hold what is to be freed
        if isinstance(result, MicroBatchTooLarge):
            self.shrink(result)
            return None
        proved = run.engine.prove_phase()
        if proved is not None:
            name = run.recipe.phases[self._phase].name
            run.tracker.write(PhaseRecord(step=self.state.step, name=name, **proved))
            forget_peak(run.ranks)
        self.state.step += 1
        run.stop.request.unsaved = True
        return result

    def shrink(self, too_large: MicroBatchTooLarge) -> None:
        """Halve the micro-batches for the rest of the run, on every rank, or save and fail; collective."""
        run, step = self.run, self.state.step
        try:
            batching = smaller_batching(run.batching, too_large, step, run.folder, accumulates=run.profile.accumulates)
        except TrainingFault as fault:
            if too_large.is_agreed:
                self._fail(fault)
            raise
        self._flush()
        run.tracker.write(fault_record(batching, too_large, step))
        self.batch = None
        self._feed.close()
        run.batching, self.state.max_micro_batch = batching, batching.max_micro_batch
        run.dataset = run.dataset.with_batching(batching)
        run.engine.rebuild(batching)
        self._load()

    def record(self, batch: StepBatch, result: StepResult) -> None:
        """Make the step's record. Its figures are read one step later, when the device has them; collective.

        Raises:
            TrainingFault: gradients were not finite for too many steps.
            DataError: more clips cannot be read than the recipe allows; what is trained is saved.
        """
        run, step = self.run, self.state.step
        unreadable, too_many = [], None
        if self._some_skipped:
            fault, too_many = self._faults.unreadable(batch.step, batch.skipped)
            run.tracker.write(fault)
            unreadable, self.state.unreadable_clips = fault.clips, self._faults.unreadable_ids
        chosen = (run.train_clips[index] for index in run.dataset.clips_of_step(step - 1))
        clips = [clip for clip in chosen if clip.id not in unreadable]
        record = TrainRecord(
            step=step,
            epoch=(step - 1) // self._steps_per_epoch + 1,
            phase=run.recipe.phases[self._phase].name,
            lr=run.schedule.rates(step - 1),
            clips=len(clips),
            audio_s=round(sum(clip.duration_s for clip in clips), 3),
            sets=None if run.dataset.mixture is None else counts_by_set(clips),
            step_s=time.monotonic() - self._step_started,
            data_wait_s=batch.wait_s,
            loss=math.nan,  # the figures of the device are read later
        )
        self._pending.append((record, batch, result))
        if too_many is not None:
            self._fail(too_many)
        self._read(keep=1)
        if step % run.recipe.logging.every_steps == 0 or self.is_done:
            self._flush()
        if is_machine_read(step - run.schedule.phase_starts[self._phase], is_last=self.is_done):
            run.tracker.write(read_machine(run.ranks, step, record.phase))

    def _read(self, keep: int = 0) -> None:
        """Read the figures of all pending steps but the newest ``keep``."""
        while len(self._pending) > keep:
            record, batch, result = self._pending.pop(0)
            figures = result.figures()
            record = replace(record, loss=figures.loss, grad_norm=figures.grad_norm, tokens=figures.num_labels)
            if figures.applied:
                self._records.append(record)
                self._faults.finite()
                continue
            self._records.append(replace(record, clips=0, audio_s=0.0, sets=None))
            self._write_records()
            self.batch = batch  # the evidence, should this be one too many
            self.run.tracker.write(self._faults.non_finite(batch, self.run.checkpoints))

    def _write_records(self) -> None:
        for record in self._records:
            self.run.tracker.write(record)
        self._records.clear()

    def _flush(self) -> None:
        """Read and write all pending records, and those of checkpoints."""
        self._read()
        self._write_records()
        for outcome in self.run.checkpoints.take_outcomes():
            self.run.tracker.write(saving.checkpoint_record(outcome, self.run.folder))
            self.state.write_s = self.state.write_s if outcome.failure else outcome.write_s
            self._slow_disk.warn()

    def evaluate_if_due(self) -> None:
        """Measure the whole eval split at an epoch's end; the sample at the start, every few steps and at the end."""
        settings, step = self.run.recipe.evaluation, self.state.step
        if self.state.evaluated_step == step:
            return
        if step and step % self._steps_per_epoch == 0 and settings.full_each_epoch:
            self._evaluate(self.run.eval_clips, "eval")
        elif settings.at_start if step == 0 else step % settings.every_steps == 0 or self.is_done:
            self._evaluate(self.run.evaluator.sample, "sample")

    def _evaluate(self, clips: Sequence[Clip], split: str) -> None:
        self._flush()
        run, state = self.run, self.state
        run.now(f"step {state.step}: measuring WER on {len(clips):,} clips")
        with run.engine.whole_model() as asr:
            found = run.evaluator(asr, clips, state.step, split, run.stop)
        if found is None:
            self.stop()
        for record in filter(None, (found.record, found.fault)):
            run.tracker.write(record)
        state.evaluated_step = state.step
        if found.record is not None and found.record.sample_wer is not None:
            state.measured(found.record.sample_wer, what_is_measured(run.evaluator.sample, run.recipe.evaluation))
        if found.record is not None and split == "eval":
            state.full = {key: getattr(found.record, key) for key in ("step", "wer", "cer", "clips")}
        run.checkpoints.attach(state.step, saving.values_of(run))

    def save_if_due(self) -> None:
        """A checkpoint every so many steps, and of the last one; what is measured at this step is added to it."""
        if self.state.step % self.run.recipe.checkpoints.every_steps == 0 or self.is_done:
            self._save()

    def _save(self, *, last: bool = False) -> Outcome | None:
        """What ``CheckpointStore.save`` returns, for this step; None where it is sealed or being written already."""
        self._flush()
        store, state = self.run.checkpoints, self.state
        if state.step in (store.sealed_step, store.begun_step):
            return None
        state.seconds = self._seconds()
        return store.save(self.run.engine.host_state, state.step, saving.values_of(self.run), last=last)

    def _save_for_good(self) -> str | None:
        """Write a checkpoint of this step and wait until it is sealed; returns why it is not, if it fails. Collective.

        If one of this step is being written, this waits for it, and writes it again if that fails.
        """
        self.run.checkpoints.finish()
        outcome = self._save(last=True)
        self._flush()
        return None if outcome is None else outcome.failure

    def stop(self) -> NoReturn:
        """Save and leave, on all ranks together: by Preempted, or by Unsaved where the disk does not take the state."""
        request = self.run.stop.request
        request.ask()  # if only another rank was: now all are, and the run's lock says so
        if not self.state.step:
            raise Preempted(nothing_to_save(request.reason))
        failure = self._save_for_good()
        kind = Preempted if failure is None else Unsaved
        request.leaving(kind.exit_code)
        raise kind(saving.stopped(self.run, failure))

    def _fail(self, error: HebrewASRError | None) -> NoReturn:
        """Save, and leave with the error of the first rank that has one; collective. ``error``: this rank's."""
        failure = self._save_for_good() if self.state.step else None
        saving.raise_together(self.run.ranks, error, saving.stopped(self.run, failure))

    def finish(self) -> None:
        """Save the last checkpoint and the model, and sum the run up.

        Raises:
            Unsaved: the model could not be written; the message says what there is instead.
        """
        run, state = self.run, self.state
        record_fallbacks(run.tracker, run.ranks, state)
        if (failure := self._save_for_good()) is None:
            run.stop.request.unsaved = False
        if failure is None and run.stop.agreed():
            raise Preempted(f"stopped after the last step, {state.step}, state saved; --resume auto writes the model")
        norms = run.engine.head_row_norms()
        final = write_final(run, is_saved=failure is None)
        if final is None:
            self.stop()
        run.stop.request.leaving(0)
        if run.ranks.is_main and final.failure is None:
            chosen = {"model": final.title, "compared": final.measured}
            final.failure = saving.write_summary(run, saving.summary_of(run, self._seconds(), norms, chosen))
        model_failure = run.ranks.broadcast(final.failure)
        if model_failure is not None:
            raise Unsaved(saving.without_model(run, state.step, model_failure, failure))
        if run.console is not None:
            commands = next_commands(run.folder, run.eval_clips[0].own_file)
            run.console.end(state.step, self._seconds(), run.folder, str(final), state.fallbacks, commands)
        run.ranks.barrier()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started
