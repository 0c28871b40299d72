"""Everything a run needs, made in order: what ``check.py`` finds without a GPU or a process group comes first."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import hebrew_asr
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.checkpoints.base_model import BaseModel
from hebrew_asr.checkpoints.disk_space import disk_need, require_disk_space
from hebrew_asr.checkpoints.store import CheckpointStore
from hebrew_asr.config.batching import deepspeed_config
from hebrew_asr.config.profiles import Profile
from hebrew_asr.config.recipe import Recipe
from hebrew_asr.config.schedule import Schedule
from hebrew_asr.data.clips import Clips
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.vocabulary import training_vocabulary
from hebrew_asr.engine import dist
from hebrew_asr.engine.engine import TrainEngine
from hebrew_asr.engine.shared import require_shared
from hebrew_asr.engine.stop_flag import StopFlag
from hebrew_asr.engine.watchdog import Watchdog
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.evaluation.evaluator import Evaluator
from hebrew_asr.files import as_json, as_os_error
from hebrew_asr.launching import place
from hebrew_asr.launching.stopping import StopRequest
from hebrew_asr.locks import FolderLock
from hebrew_asr.model.groups import GROUPS
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.phases import check_phases
from hebrew_asr.passes.forward import training_module
from hebrew_asr.remote.paths import is_url
from hebrew_asr.report.outputs import MetricsFile, PatientFiles
from hebrew_asr.report.sinks import TensorBoardSink, Tracker, WandbSink
from hebrew_asr.training.arguments import SUMMARY, TrainArguments, lock_of
from hebrew_asr.training.check import RunSpec, check, refuse_another_base, shared_by_ranks
from hebrew_asr.training.identity import code_version, git_commit, refuse_ranks_that_differ
from hebrew_asr.training.train_state import TrainState
from hebrew_asr.units import count
from hebrew_asr.watching.console import Console
from hebrew_asr.watching.live_page import LivePage
from hebrew_asr.watching.progress import Course


@dataclass(kw_only=True)
class Run(RunSpec):
    """A run, ready to train: what was checked, and what was built from it."""

    ranks: dist.Ranks
    dataset: StepDataset
    schedule: Schedule
    asr: Any
    base: BaseModel
    """What was in ``asr`` before any training."""
    tokenizer: Any
    mel: LogMel
    engine: TrainEngine
    evaluator: Evaluator
    checkpoints: CheckpointStore
    files: PatientFiles
    tracker: Tracker
    console: Console | None
    stop: StopFlag
    watchdog: Watchdog
    lock: FolderLock
    state: TrainState

    def say(self, text: str) -> None:
        """Print a line, on the first rank."""
        if self.console is not None:
            self.console.say(text)

    def now(self, doing: str) -> None:
        """Show what takes long and is no step, on the first rank, until the next step or evaluation."""
        if self.console is not None:
            self.console.now(doing)


def set_up(arguments: TrainArguments, request: StopRequest | None = None, *, saves: bool = True) -> Run:
    """Build a run on this rank, which holds the lock of its directory if it is the first; collective.

    ``saves``: whether there must be room on the disk for checkpoints and a model.

    Raises:
        HebrewASRError: something that the arguments name is missing, wrong or impossible.
    """
    request = request or StopRequest()
    lock: FolderLock | None = None
    try:
        with dist.failing_together():
            spec = check(arguments)
            tokenizer = load_tokenizer(spec.recipe.model.path)
            lock = lock_of(spec.folder)
            request.cleanups.append(lock.release)
            if place.rank_from_environment() == 0:
                lock.take_or_refuse(f"run directory {spec.folder}")
                request.on_ask.append(lock.will_be_free)
                (spec.folder / "STOP").unlink(missing_ok=True)  # of an earlier start; one that comes later is for this
            asr = _load_model(spec.recipe, spec.profile)
            weights_by_phase = check_phases(asr, spec.recipe)  # every phase is set once, to see that it can be
            space_warning = _require_disk_space(spec, asr, weights_by_phase) if saves else None
        return _build(spec, tokenizer, asr, lock, request, weights_by_phase, space_warning)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _build(
    spec: RunSpec,
    tokenizer: Any,
    asr: Any,
    lock: FolderLock,
    request: StopRequest,
    weights_by_phase: dict[str, dict[str, int]],
    space_warning: str | None,
) -> Run:
    recipe, profile = spec.recipe, spec.profile
    ranks = _join_ranks(spec, request)
    watchdog = Watchdog(ranks)
    mel = LogMel().to(ranks.device)
    module = training_module(asr, profile)
    module.to(ranks.device)
    base = BaseModel.of(asr, tokenizer, recipe.model.path)
    refuse_ranks_that_differ(ranks, shared_by_ranks(spec, base))
    spec = replace(spec, resumable=spec.resumable.settle(ranks))
    state = _state_to_start_from(spec, base, ranks)
    geometry = EncoderGeometry.of(asr.config.audio_config)
    dataset = StepDataset(spec.train_clips, spec.batching, recipe, tokenizer, geometry, ranks.rank)
    schedule = Schedule(recipe, dataset.steps_per_epoch)
    if profile.compiles:
        dataset.fix_shapes(schedule.total_steps, ranks=ranks)
    present_V = _training_vocabulary(spec.train_clips, tokenizer, len(asr.lm_head.weight), ranks)
    engine = TrainEngine(module, asr, recipe, profile, spec.batching, ranks, present_V)
    files = PatientFiles(spec.folder)
    devices = ranks.gather(torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu")
    facts = (spec, base, schedule, weights_by_phase, present_V, devices)
    tracker, console = _opened(spec, ranks, lambda: _outputs(spec, files, schedule, state, describe(*facts), request))
    if console is not None and space_warning is not None:
        console.say(space_warning)
    return Run(
        **vars(spec),
        ranks=ranks,
        dataset=dataset,
        schedule=schedule,
        asr=asr,
        base=base,
        tokenizer=tokenizer,
        mel=mel,
        engine=engine,
        evaluator=Evaluator(tokenizer, recipe.evaluation, spec.eval_clips, ranks, files),
        checkpoints=_checkpoint_store(spec, ranks),
        files=files,
        tracker=tracker,
        console=console,
        stop=StopFlag(spec.folder, ranks, request),
        watchdog=watchdog,
        lock=lock,
        state=state,
    )


def _load_model(recipe: Recipe, profile: Profile) -> Any:
    """The native model, whole. Random weights are drawn on the GPU: two billion take a host 100 s, and a GPU one."""
    if profile.hardware.accelerator == "cpu":
        place.share_cores()  # before torch starts threads, which inherit it
    torch.manual_seed(recipe.seed)
    draws_on_gpu = recipe.model.random_weights and profile.hardware.accelerator == "cuda"
    with torch.device("cuda", place.local_rank_from_environment()) if draws_on_gpu else nullcontext():
        return load_model(recipe.model, seed=recipe.seed, dtype=torch.bfloat16 if profile.bf16 else torch.float32)


def _join_ranks(spec: RunSpec, request: StopRequest) -> dist.Ranks:
    """From here on the ranks act together: each one has found its own arguments possible. Collective."""
    ranks = dist.start(spec.profile.hardware.accelerator)
    gc.freeze()  # what is imported stays: DeepSpeed collects garbage some 30 times while it builds an engine
    request.met()
    require_shared(spec.folder, ranks)
    return ranks


def _state_to_start_from(spec: RunSpec, base: BaseModel, ranks: dist.Ranks) -> TrainState:
    state, resume = TrainState(), spec.resumable.newest
    if resume is not None:
        refuse_another_base(resume, base, ranks)
        state = TrainState.of(resume)
    if spec.out_of_memory is not None:
        state.max_micro_batch = spec.batching.max_micro_batch
    return state


def _checkpoint_store(spec: RunSpec, ranks: dist.Ranks) -> CheckpointStore:
    settings, resume = spec.recipe.checkpoints, spec.resumable.newest
    return CheckpointStore(
        spec.folder / "checkpoints",
        ranks,
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        background=settings.background,
        sealed_step=None if resume is None else resume.step,
    )


def _require_disk_space(spec: RunSpec, asr: Any, weights_by_phase: dict[str, dict[str, int]]) -> str | None:
    recipe, present = spec.recipe, spec.resumable.checkpoints
    model = sum(parameter.numel() * parameter.element_size() for parameter in asr.parameters())
    need = disk_need(recipe, (sum(sizes.values()) for sizes in weights_by_phase.values()), model)
    steps = recipe.epochs * recipe.steps_per_epoch(len(spec.train_clips))
    is_trained = bool(present) and present[-1].step >= min(steps, recipe.max_steps or steps)
    return require_disk_space(need, spec.folder, present, is_trained=is_trained)


def _training_vocabulary(clips: Clips, tokenizer: Any, num_rows: int, ranks: dist.Ranks) -> torch.Tensor:
    """(``num_rows``,) bool, the tokens that occur in training. Ranks read a share of the texts each; collective."""
    occurs_V = torch.zeros(num_rows, dtype=torch.int32)
    occurs_V[list(training_vocabulary(tokenizer, clips, ranks.rank, ranks.size))] = 1
    return ranks.max(occurs_V).bool()


def _opened(
    spec: RunSpec, ranks: dist.Ranks, open_them: Callable[[], tuple[Tracker, Console]]
) -> tuple[Tracker, Console | None]:
    """What the first rank alone writes; what refuses it ends all of them. Collective.

    Raises:
        EnvironmentProblem: the disk, or who owns a file there.
    """
    opened, refused = (Tracker(), None), None
    try:
        opened = open_them() if ranks.is_main else opened
    except OSError as error:
        refused = as_os_error(error).strerror
    if (refused := ranks.broadcast(refused)) is not None:
        fault = f"run directory {spec.folder} cannot be written: {refused}; mend that, or give --run"
        raise ranks.in_common(EnvironmentProblem(fault))
    return opened


def _outputs(
    spec: RunSpec,
    files: PatientFiles,
    schedule: Schedule,
    state: TrainState,
    facts: dict[str, Any],
    request: StopRequest,
) -> tuple[Tracker, Console]:
    """Write what the run is into its directory and open its sinks."""
    recipe, profile, batching, folder = spec.recipe, spec.profile, spec.batching, spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier start: this one is not finished
    files.write("recipe.json", as_json(recipe.to_dict()))
    files.write("deepspeed.json", as_json(deepspeed_config(profile, recipe, batching)))
    files.write("run.json", as_json(facts))
    resumed_step = None if spec.resumable.newest is None else state.step
    metrics = MetricsFile(folder / "metrics.jsonl", resumed_step, is_evaluated=state.evaluated_step == state.step)
    sinks: list[Any] = [metrics]
    if recipe.logging.wandb:
        sinks.append(WandbSink(recipe, folder, facts, state.tracker_id))
        state.tracker_id = sinks[-1].run_id
    if recipe.logging.tensorboard:
        sinks.append(TensorBoardSink(folder, resumed_step))
    if recipe.logging.report:
        sinks.append(LivePage(folder, lambda fault: tracker.write(fault)))
    measured = {(state.best_step, state.best_wer), (state.wer_step, state.wer_last)}
    course = Course(
        recipe=recipe,
        steps_per_epoch=schedule.total_steps // recipe.epochs,
        last_step=schedule.last_step,
        eval_clips=len(spec.eval_clips),
        done_steps=state.step,
        seconds_before=state.seconds,
        rates=tuple(sorted((step, wer) for step, wer in measured if step is not None and wer is not None)),
    )
    console = Console(course)
    request.on_ask.append(console.close)  # a launcher's own words on a stop would be cut up by a view in place
    _introduce(console, spec, schedule, facts)
    tracker = Tracker(*sinks, console)
    return tracker, console


def describe(
    spec: RunSpec,
    base: BaseModel,
    schedule: Schedule,
    weights_by_phase: dict[str, dict[str, int]],
    present_V: torch.Tensor,
    devices: list[str],
) -> dict[str, Any]:
    """Facts of a run that its numbers depend on. ``devices``: of each rank."""
    data = spec.recipe.data.folder
    return {
        "hebrew_asr": hebrew_asr.__version__,
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "code": code_version(),
        "base_model": base.to_dict(),
        "profile": spec.profile.name,
        "num_ranks": spec.batching.num_ranks,
        "devices": devices,
        "batching": str(spec.batching),
        "data_folder": data if is_url(data) else str(Path(data).absolute()),
        "data": {**spec.fingerprints, "sets": [asdict(one) for one in spec.sets]},
        "train_clips": len(spec.train_clips),
        "train_hours": round(float(spec.train_clips.durations_s.sum()) / 3600, 3),
        "train_longest_s": round(float(spec.train_clips.durations_s.max()), 3),
        "eval_clips": len(spec.eval_clips),
        "total_steps": schedule.total_steps,
        "phase_starts": schedule.phase_starts,
        "trainable_weights": weights_by_phase,
        "training_vocabulary": int(present_V.sum()),
    }


def _introduce(console: Console, spec: RunSpec, schedule: Schedule, facts: dict[str, Any]) -> None:
    """Print what was derived, so that a reader can check the arithmetic."""
    recipe, profile = spec.recipe, spec.profile
    steps, total = schedule.total_steps // recipe.epochs, schedule.total_steps
    console.say(f"recipe {recipe.name}, profile {profile.name}: ZeRO-{profile.zero_stage}, {profile.precision}")
    num_train, num_eval, hours = (facts[key] for key in ("train_clips", "eval_clips", "train_hours"))
    console.say(f"data {recipe.data.folder}: {num_train:,} training clips ({hours:.2f} h), {num_eval:,} eval clips")
    for one in spec.sets:
        counts = ", ".join(f"{found['clips']:,} of {side}" for side, found in one.sides.items())
        console.say(f"  of {one.name} ({one.place}): {counts}")
    meant = profile.hardware.num_ranks
    other = "" if spec.batching.num_ranks == meant else f" (the profile is for {count(meant, 'rank')})"
    each = f"{count(steps, 'step')} per epoch, {total:,} in {count(recipe.epochs, 'epoch')}"
    console.say(f"{spec.batching}{other}; {each}")
    for index, (phase, start) in enumerate(zip(recipe.phases, schedule.phase_starts, strict=True)):
        sizes, highest = facts["trainable_weights"][phase.name], schedule.highest_rates(index)
        ends_before = "" if highest else f" (not reached: this run ends after step {schedule.last_step:,})"
        console.say(f"phase {phase.name} from step {start:,}: {sum(sizes.values()):,} weights train{ends_before}")
        for group, size in sizes.items():
            rate = f", learning rate up to {highest[group]:.1e}" if highest else ""
            rows = f" (the rows of {facts['training_vocabulary']:,} tokens that occur in training; others stay)"
            part = rows if group == "head" and recipe.optimizer.absent_tokens == "frozen" else ""
            console.say(f"  {group} ({GROUPS[group].holds}): {size:,}{part}{rate}")
    if spec.resumable.newest is not None:
        console.say(f"resuming from {spec.resumable.newest.path}")
