"""Everything a run needs, made in order: what can be checked without a GPU or a process group is checked first."""

from __future__ import annotations

import gc
import platform
import subprocess
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import hebrew_asr
from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.audio.mel import LogMel
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import Clip, fingerprint, read_manifest
from hebrew_asr.engine import dist
from hebrew_asr.engine.checkpoint import Checkpoint, CheckpointStore, find_checkpoints
from hebrew_asr.engine.engine import TrainEngine
from hebrew_asr.engine.signals import StopFlag
from hebrew_asr.engine.watchdog import Watchdog
from hebrew_asr.errors import CheckpointError, DataError, UsageError
from hebrew_asr.files import write_json
from hebrew_asr.model.compiled import CompiledASR
from hebrew_asr.model.load import load_model, load_tokenizer
from hebrew_asr.model.packed import PackedASR
from hebrew_asr.model.phases import check_phases
from hebrew_asr.profiles import Batching, Profile, batching, check_hardware, deepspeed_config, load_profile
from hebrew_asr.recipe import Recipe, load_recipe
from hebrew_asr.training.console import Console
from hebrew_asr.training.evaluate import Evaluator
from hebrew_asr.training.memory import noted_fault
from hebrew_asr.training.schedule import Schedule
from hebrew_asr.training.state import TrainState
from hebrew_asr.training.tracking import MetricsFile, Tracker, WandbSink


@dataclass
class TrainArguments:
    """Train Qwen3-ASR for Hebrew. Usually through the launcher:

    deepspeed --num_gpus 8 hebrew_asr/train.py --ds ds_configs/a100x8.json
    """

    ds: str
    """Hardware profile, a DeepSpeed JSON: ds_configs/a100x8.json, ds_configs/cpu.json, …"""
    recipe: str = "round2"
    """Recipe: a JSON file, or the name of a shipped one."""
    set: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """A change to the recipe, such as optimizer.weight_decay=0.1 or phases.0.epochs=1; may be given again."""
    run_dir: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Run directory; runs/<recipe name> unless given."""
    resume: Literal["auto", "never"] = "never"
    """auto, or nothing: go on from the newest complete checkpoint in the run directory; start if there is none."""


@dataclass
class Run:
    """A run, ready to train."""

    recipe: Recipe
    profile: Profile
    plan: Batching
    ranks: dist.Ranks
    folder: Path
    train_clips: list[Clip]
    eval_clips: list[Clip]
    dataset: StepDataset
    schedule: Schedule
    asr: Any
    tokenizer: Any
    mel: LogMel
    engine: TrainEngine
    evaluator: Evaluator
    checkpoints: CheckpointStore
    tracker: Tracker
    console: Console | None
    stop: StopFlag
    watchdog: Watchdog
    state: TrainState
    resumed_from: Checkpoint | None
    data_fingerprint: str
    """Of the training manifest: a checkpoint's order of clips is that of one manifest."""
    noted_fault: dict[str, Any] | None
    """What ended the session before, where it changes this one: device memory that did not suffice."""

    def say(self, text: str) -> None:
        """Print a line, on the first rank."""
        if self.console is not None:
            self.console.say(text)


@dataclass(frozen=True)
class Checked:
    """What the arguments name, read and found possible, before any process group exists."""

    recipe: Recipe
    profile: Profile
    plan: Batching
    folder: Path
    train_clips: list[Clip]
    eval_clips: list[Clip]
    data_fingerprint: str
    resume: Checkpoint | None
    noted_fault: dict[str, Any] | None


def check(arguments: TrainArguments) -> Checked:
    """Read and check recipe, profile, hardware, run directory and manifests.

    Raises:
        HebrewASRError: the first kind of mistake found, in words.
    """
    num_ranks = dist.num_ranks_from_environment()
    recipe = load_recipe(arguments.recipe, arguments.set)
    profile = load_profile(arguments.ds)
    plan = batching(profile, recipe, num_ranks)
    check_hardware(profile, dist.local_ranks_from_environment(), torch.cuda.device_count())
    folder = Path(arguments.run_dir or f"runs/{recipe.name}")
    resume = _resumable(folder, recipe, arguments.resume)
    plan, noted = _within_memory(plan, folder, resume) if arguments.resume == "auto" else (plan, None)
    source = Path(recipe.data.folder)
    if recipe.data.prepare:
        from hebrew_asr.data.prepare import ensure_prepared  # it reads parquet; training alone never does

        ensure_prepared(source)
    train_clips = read_manifest(source / "train.jsonl", allow_outside=recipe.data.allow_outside)
    eval_clips = read_manifest(source / "eval.jsonl", allow_outside=recipe.data.allow_outside)
    longest = max(train_clips, key=lambda clip: clip.duration_s)
    if longest.duration_s > recipe.data.max_duration_s:
        raise DataError(
            f"clip {longest.id} in {source / 'train.jsonl'} lasts {longest.duration_s:.1f} s, the recipe's "
            f"data.max_duration_s is {recipe.data.max_duration_s:g}; prepare shorter clips or raise it"
        )
    data = fingerprint(train_clips)
    if resume is not None:
        _refuse_inexact(resume, profile, data)
    return Checked(recipe, profile, plan, folder, train_clips, eval_clips, data, resume, noted)


def _refuse_inexact(resume: Checkpoint, profile: Profile, data: str) -> None:
    """Rank count, ZeRO stage, offload and micro-batch may differ from the checkpoint's; these two may not."""
    written = resume.values.get("precision", profile.precision)
    if written != profile.precision:
        raise CheckpointError(
            f"{resume.path} was trained in {written} and {profile.source} trains in {profile.precision}: frozen "
            f"weights would be others; resume with a profile in {written}, of any ZeRO stage and rank count"
        )
    if resume.values.get("data", data) != data:
        raise CheckpointError(
            f"the training manifest has changed since {resume.path} was written, and with it the order of clips; "
            f"restore it, or give --run another name"
        )


def _within_memory(plan: Batching, folder: Path, resume: Checkpoint | None) -> tuple[Batching, dict[str, Any] | None]:
    """Keep to the micro-batch that fitted before; the fault, if it is newer than the checkpoint."""
    if resume is not None and resume.values["state"].get("max_micro_batch"):
        plan = plan.limited_to(resume.values["state"]["max_micro_batch"])
    noted = noted_fault(folder)
    if noted is None or noted["max_micro_batch"] >= plan.max_micro_batch:
        return plan, None
    return plan.limited_to(noted["max_micro_batch"]), noted


def _resumable(folder: Path, recipe: Recipe, resume: str) -> Checkpoint | None:
    """The checkpoint to go on from, if any; refuses a used run directory otherwise.

    A change of what is learnt needs a new run; how long, how often and where it is logged may change.
    """
    import json

    used = (folder / "recipe.json").is_file()
    if not used:
        return None
    if resume == "never":
        raise UsageError(f"run directory {folder} is in use; add --resume auto to go on, or give --run another name")
    before = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(recipe.to_dict()))
    free = {"logging", "checkpoints", "evaluation", "faults", "max_steps"}
    changed = sorted(key for key in before.keys() | now.keys() if key not in free and before.get(key) != now.get(key))
    if changed:
        raise CheckpointError(
            f"run directory {folder} was made by another recipe ({before.get('name')}; it differs in "
            f"{', '.join(changed)}); give --run another name, or go back to its recipe"
        )
    found = find_checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def set_up(arguments: TrainArguments) -> Run:
    """Build a run on this rank; collective.

    Raises:
        HebrewASRError: something that the arguments name is missing, wrong or impossible.
    """
    # 1. What can be known alone.
    checked = check(arguments)
    recipe, profile, plan, folder = checked.recipe, checked.profile, checked.plan, checked.folder
    tokenizer = load_tokenizer(recipe.model.path)
    if profile.hardware.accelerator == "cpu":
        dist.share_cores()  # threads inherit it
    # 2. The model, still whole and on the host; every phase is built once to see that it can be.
    torch.manual_seed(recipe.seed)
    with _drawn_on(recipe, profile):
        asr = load_model(recipe.model, seed=recipe.seed, dtype=torch.bfloat16 if profile.bf16 else torch.float32)
    weights_by_phase = check_phases(asr, recipe)
    # 3. The ranks.
    ranks = dist.start(profile.hardware.accelerator)
    gc.freeze()  # what is imported stays: DeepSpeed collects garbage some 30 times while it builds an engine
    stop = StopFlag(folder, ranks)
    stop.install()
    mel = LogMel().to(ranks.device)
    module = CompiledASR(asr, cuda_graphs=profile.uses_cuda_graphs) if profile.compiles else PackedASR(asr)
    module.to(ranks.device)
    # 4. Position.
    state = TrainState()
    if checked.resume is not None:
        checked.resume.verify()
        state = TrainState(**checked.resume.values["state"])
    if checked.noted_fault is not None:
        state.max_micro_batch = plan.max_micro_batch
    # 5. Data, schedule, engine.
    geometry = EncoderGeometry.of(asr.config.audio_config)
    dataset = StepDataset(checked.train_clips, plan, recipe, tokenizer, geometry, ranks.rank)
    schedule = Schedule(recipe, dataset.steps_per_epoch)
    if profile.compiles:
        dataset.fix_shapes(schedule.total_steps)
    engine = TrainEngine(module, asr, recipe, profile, plan, ranks)
    # 6. Outputs, on the first rank.
    tracker, console = Tracker(), None
    if ranks.is_main:
        tracker, console = _outputs(checked, schedule, state, weights_by_phase)
    store = CheckpointStore(
        folder / "checkpoints",
        ranks,
        keep_last=recipe.checkpoints.keep_last,
        keep_best=recipe.checkpoints.keep_best,
        background=recipe.checkpoints.background,
    )
    return Run(
        recipe=recipe,
        profile=profile,
        plan=plan,
        ranks=ranks,
        folder=folder,
        train_clips=checked.train_clips,
        eval_clips=checked.eval_clips,
        dataset=dataset,
        schedule=schedule,
        asr=asr,
        tokenizer=tokenizer,
        mel=mel,
        engine=engine,
        evaluator=Evaluator(tokenizer, recipe.evaluation, ranks, folder / "samples"),
        checkpoints=store,
        tracker=tracker,
        console=console,
        stop=stop,
        watchdog=Watchdog(ranks),
        state=state,
        resumed_from=checked.resume,
        data_fingerprint=checked.data_fingerprint,
        noted_fault=checked.noted_fault,
    )


def _drawn_on(recipe: Recipe, profile: Profile) -> AbstractContextManager[Any]:
    """Two billion random weights take a host 100 s and a GPU one; real weights are read to the host."""
    if recipe.model.random_weights and profile.hardware.accelerator == "cuda":
        return torch.device("cuda", dist.local_rank_from_environment())
    return nullcontext()


def _outputs(
    checked: Checked, schedule: Schedule, state: TrainState, weights_by_phase: dict[str, dict[str, int]]
) -> tuple[Tracker, Console]:
    """Write what the run is into its directory and open its sinks."""
    recipe, profile, plan, folder = checked.recipe, checked.profile, checked.plan, checked.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "STOP").unlink(missing_ok=True)
    facts = describe(checked, schedule, weights_by_phase)
    write_json(folder / "recipe.json", recipe.to_dict())
    write_json(folder / "deepspeed.json", deepspeed_config(profile, recipe, plan))
    write_json(folder / "run.json", facts)
    resume_step = state.step if checked.resume else None
    sinks: list[Any] = [MetricsFile(folder / "metrics.jsonl", resume_step)]
    if recipe.logging.wandb:
        wandb_sink = WandbSink(recipe, folder, {**recipe.to_dict(), **facts}, state.tracker_id)
        state.tracker_id = wandb_sink.run_id
        sinks.append(wandb_sink)
    console = Console(min(schedule.total_steps, recipe.max_steps or schedule.total_steps), state.step)
    _introduce(console, checked, schedule, weights_by_phase)
    return Tracker(*sinks, console), console


def describe(checked: Checked, schedule: Schedule, weights_by_phase: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Facts of a run that its numbers depend on."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "hebrew_asr": hebrew_asr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "profile": checked.profile.name,
        "num_ranks": checked.plan.num_ranks,
        "devices": devices or ["cpu"],
        "batching": str(checked.plan),
        "train_clips": len(checked.train_clips),
        "train_hours": round(sum(clip.duration_s for clip in checked.train_clips) / 3600, 3),
        "eval_clips": len(checked.eval_clips),
        "total_steps": schedule.total_steps,
        "phase_starts": schedule.phase_starts,
        "trainable_weights": weights_by_phase,
    }


def _git_commit() -> str | None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _introduce(console: Console, checked: Checked, schedule: Schedule, weights: dict[str, dict[str, int]]) -> None:
    """Print what was derived, so that a reader can check the arithmetic."""
    recipe, profile = checked.recipe, checked.profile
    hours = sum(clip.duration_s for clip in checked.train_clips) / 3600
    num_train, num_eval = len(checked.train_clips), len(checked.eval_clips)
    steps, total = schedule.total_steps // recipe.epochs, schedule.total_steps
    console.say(f"recipe {recipe.name}, profile {profile.name}: ZeRO-{profile.zero_stage}, {profile.precision}")
    console.say(f"data {recipe.data.folder}: {num_train:,} training clips ({hours:.2f} h), {num_eval:,} eval clips")
    console.say(f"{checked.plan}; {steps:,} steps an epoch, {total:,} in {recipe.epochs} epochs")
    for phase, start in zip(recipe.phases, schedule.phase_starts, strict=True):
        sizes = weights[phase.name]
        parts = ", ".join(f"{group} {size:,} at {phase.learning_rates[group]:.0e}" for group, size in sizes.items())
        console.say(f"phase {phase.name} from step {start:,}: {sum(sizes.values()):,} weights train ({parts})")
    if checked.resume is not None:
        console.say(f"resuming from {checked.resume.path}")
