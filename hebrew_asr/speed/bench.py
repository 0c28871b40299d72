"""Steady-state speed of the real trainer: its loader, augmentation, engine and optimizer, in every phase.

``hebrew-asr bench`` runs this file through the DeepSpeed launcher; ``BenchArguments`` are its options.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import psutil
import torch
import tyro

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.config.batching import derive_batching
from hebrew_asr.config.options import parse_options
from hebrew_asr.data.loader import StepBatch
from hebrew_asr.data.shapes import Shape
from hebrew_asr.engine import dist
from hebrew_asr.errors import exit_process
from hebrew_asr.evaluation.evaluator import Evaluator
from hebrew_asr.files import write_json
from hebrew_asr.launching.stopping import StopRequest
from hebrew_asr.model.sizes import ModelSizes
from hebrew_asr.planning.flops import Work, pass_flops
from hebrew_asr.speed.traced import network_alone_ms, wait, write_trace
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.feed import feed
from hebrew_asr.training.loading import load_steps
from hebrew_asr.training.rank import run_rank
from hebrew_asr.training.setup import Run, set_up
from hebrew_asr.units import GIB

WARMUP_STEPS, SPLIT_STEPS = 10, 5
SETTLED = 2
"""Steps after which a shape is surely recorded: a phase's first step runs as it is, so this one's may."""
QUIET = 3
"""Steps discarded after a graph recording, before timing resumes: until then the host is not ahead of the device."""
TOKENS_PER_S = 5.0
"""What Hebrew speech takes, so what a trained model writes."""


@dataclass
class BenchArguments(TrainArguments):
    """Measure phases of a run; ``hebrew-asr bench`` makes its clips and calls this on every rank."""

    phases: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Names of the phases to measure."""
    sizes: Annotated[list[int], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Clips per step; the sizes of a phase share what was compiled for it."""
    steps: int = 40
    """Timed steps."""
    out: Path = Path("figures.json")
    """JSON file of figures, written when all are there."""
    traces: Path | None = None
    """Folder for a profile of one step of each, if any."""


@dataclass(frozen=True)
class PhaseSpeed:
    """Figures of one phase; all ranks together unless named otherwise."""

    phase: str
    clips_per_step: int
    clips_per_s: float
    audio_s_per_s: float
    tokens_per_s: float
    ms_per_step: float
    """Mean over steps that compiled and recorded nothing, and that came after such steps: as in a long run."""
    median_ms: float
    """Of the same steps: it is well below the mean where a few took much longer than others."""
    slowest_ms: float
    steps: int
    compile_s: float
    """What warming up took beyond as many ordinary steps."""
    data_wait_share: float
    """Share of the time in which the training thread waited for data."""
    forward_ms: float
    """Median on the first rank, which waits for the device after each part; so the three parts add up to more than a
    step."""
    backward_ms: float
    optimizer_ms: float
    """The optimizer's step, and what communication backward does not hide."""
    exposed_ms: float | None
    """Of a step in which the slowest rank's device does nothing but communicate; None of one rank, and on a CPU."""
    tflops: float
    """Rate of one device, in operations as :mod:`hebrew_asr.planning.flops` counts them."""
    mfu: float
    """``tflops``, as a share of the card's rate for a large matrix product."""
    padding_share: float
    """Share of padding among all tokens."""
    peak_gib: float


@dataclass(frozen=True)
class Interruptions:
    """What training stands still for, every so many steps."""

    evaluated_clips: int
    """The recipe's ``evaluation.sample_clips``, as far as there are so many."""
    evaluation_s: float
    """With as many tokens for each clip as it would take to write what is said: ``TOKENS_PER_S``."""
    longest_evaluation_s: float
    """With every clip decoded up to its cap. The weights are random: none of them stops by itself."""
    checkpoint_s: float
    """The copy of the optimizer state to the host; files are written beside the steps that follow."""


def matmul_ceiling_tflops(device: torch.device) -> float:
    """Rate of a large matrix product: bfloat16 on CUDA, float32 on a CPU."""
    on_cuda = device.type == "cuda"
    size, repeats, dtype = (8192, 20, torch.bfloat16) if on_cuda else (512, 5, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    wait(device)
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e12


def measure(argv: list[str], stop: StopRequest) -> int:
    """Run phases for a while at each number of clips per step; collective. Returns the exit code."""
    arguments = parse_options(BenchArguments, "bench.py", argv)
    run = set_up(arguments, stop, saves=False)
    figures: dict[str, Any] = {
        "profile": run.profile.name,
        "num_ranks": run.ranks.size,
        "device": torch.cuda.get_device_name() if run.ranks.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "clips_per_step": run.recipe.clips_per_step,
        "batching": str(run.batching),
        "ceiling_tflops": matmul_ceiling_tflops(run.ranks.device),
        "phases": [],
    }
    for index, phase in enumerate(run.recipe.phases):
        if phase.name not in arguments.phases:
            continue
        run.engine.enter_phase(index)
        figures.setdefault("startup_s", max(run.ranks.gather(time.time() - psutil.Process().create_time())))
        for size in arguments.sizes:
            run.say(f"phase {phase.name}, {size} clips per step: warming up")
            speed = _measure_phase(_with_clips(run, size), index, arguments, figures["ceiling_tflops"])
            run.say(f"phase {phase.name}, {size} clips per step: {speed.clips_per_s:.1f} clips/s")
            figures["phases"].append(asdict(speed))
    figures["interruptions"] = asdict(_measure_interruptions(run))
    if run.ranks.is_main:
        write_json(arguments.out, figures)
    run.watchdog.stand_down()
    run.tracker.close()
    run.engine.close()
    dist.stop()
    return 0


def _measure_interruptions(run: Run) -> Interruptions:
    """In the last phase measured, which holds the most state."""
    settings = run.recipe.evaluation
    as_trained = replace(settings, max_tokens_per_s=TOKENS_PER_S, min_new_tokens=1)
    evaluate = Evaluator(run.tokenizer, as_trained, run.eval_clips, run.ranks, run.files)
    clips = evaluate.sample
    run.say(f"evaluating {len(clips)} clips, and copying the state as a checkpoint does")
    with run.engine.whole_model() as asr:
        # The first of each warms up: an evaluation meets shapes that training does not.
        _, evaluation_s = (_seconds(run, partial(evaluate, asr, clips, 0, "bench", run.stop)) for _ in range(2))
        longest_s = _seconds(run, partial(run.evaluator, asr, clips, 0, "bench", run.stop))
    if run.stop.agreed():  # then an evaluation ended early
        run.watchdog.stand_down()
        run.stop.request.leave_measurement()
    _, checkpoint_s = (_seconds(run, run.engine.host_state) for _ in range(2))
    return Interruptions(len(clips), evaluation_s, longest_s, checkpoint_s)


def _seconds(run: Run, act: Callable[[], object]) -> float:
    """How long something takes on the slowest rank; collective."""
    run.ranks.barrier()
    started = time.perf_counter()
    act()
    run.ranks.barrier()
    return time.perf_counter() - started


def _with_clips(run: Run, clips_per_step: int) -> Run:
    """The same run with another number of clips in a step."""
    recipe = replace(run.recipe, clips_per_step=clips_per_step)
    batching = derive_batching(run.profile, recipe, run.ranks.size)
    return replace(run, recipe=recipe, batching=batching, dataset=run.dataset.with_batching(batching))


def _measure_phase(run: Run, index: int, arguments: BenchArguments, ceiling_tflops: float) -> PhaseSpeed:
    steps, traces = arguments.steps, arguments.traces
    device, on_cuda = run.ranks.device, run.ranks.device.type == "cuda"
    first = run.schedule.phase_starts[index]
    rates = run.schedule.rates(first)
    loaded = load_steps(run.dataset, first, 1 << 40, workers=run.recipe.data.workers, pin_memory=on_cuda)
    steps_ahead = feed(loaded, run.mel, device)
    met: Counter[Shape] = Counter()
    started = time.perf_counter()
    warmup_steps = _warm_up(run, steps_ahead, rates, met)
    warmup_s = time.perf_counter() - started
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    timed, took_s = _time(run, steps_ahead, steps, rates, met)
    seconds = sum(took_s)
    parts = [_split(run, batch, rates) for batch in islice(steps_ahead, SPLIT_STEPS)]
    forward_ms, backward_ms, optimizer_ms = (1e3 * median(part) for part in zip(*parts, strict=True))
    exposed_ms = network_alone_ms(run, next(steps_ahead), rates) if on_cuda and run.ranks.size > 1 else None
    if traces is not None:
        stem = f"{run.recipe.phases[index].name}-{run.recipe.clips_per_step}-rank{run.ranks.rank}"
        write_trace(run, next(steps_ahead), rates, traces / stem)
    sizes = ModelSizes.of(run.asr.config)
    trained = {name for name, weight in run.asr.named_parameters() if weight.requires_grad}
    live = run.engine.module.live
    live_rows = None if live is None else len(live.ids_R)
    packed = [micro.packed for step in timed for micro in step.micro_batches if micro.num_labels]
    own = [
        float(sum(len(batch.tokens) for batch in packed)),
        sum(sum(batch.samples) for batch in packed) / SAMPLE_RATE_HZ,
        float(sum(batch.opening_tokens + sum(batch.tokens) for batch in packed)),
        float(sum(len(batch.input_ids_T) for batch in packed)),
        sum(pass_flops(sizes, trained, Work.of_batch(batch), live_rows) for batch in packed) / 1e12,
    ]
    clips, audio_s, tokens, padded, tflop = run.ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
    tflops = tflop / run.ranks.size / seconds
    return PhaseSpeed(
        phase=run.recipe.phases[index].name,
        clips_per_step=run.recipe.clips_per_step,
        clips_per_s=clips / seconds,
        audio_s_per_s=audio_s / seconds,
        tokens_per_s=tokens / seconds,
        ms_per_step=1e3 * seconds / steps,
        median_ms=1e3 * median(took_s),
        slowest_ms=1e3 * max(took_s),
        steps=steps,
        compile_s=max(0.0, warmup_s - warmup_steps * seconds / steps),
        data_wait_share=sum(batch.wait_s for batch in timed) / seconds,
        forward_ms=forward_ms,
        backward_ms=backward_ms,
        optimizer_ms=optimizer_ms,
        exposed_ms=exposed_ms,
        tflops=tflops,
        mfu=tflops / ceiling_tflops,
        padding_share=1 - tokens / padded,
        peak_gib=_peak_bytes(run) / GIB if on_cuda else 0.0,
    )


def _time(
    run: Run, batches: Iterator[StepBatch], steps: int, rates: dict[str, float], met: Counter[Shape]
) -> tuple[list[StepBatch], list[float]]:
    """As many steps as are to be timed, and the seconds of each; the ranks agree on them behind each step."""
    timed: list[StepBatch] = []
    took_s: list[float] = []
    quiet, before = 0, time.perf_counter()
    while len(timed) < steps:
        batch = next(batches)
        recording_ranks = run.ranks.begin_sum(torch.tensor(int(_may_record(run, batch, met))))
        _step(run, batch, rates, met)  # which returns when the step before it ends
        now = time.perf_counter()
        quiet = 0 if int(recording_ranks()) else quiet + 1
        if quiet > QUIET:
            timed.append(batch)
            took_s.append(now - before)
        before = now
    return timed, took_s


def _peak_bytes(run: Run) -> int:
    """Device memory that was in use at once. Recordings keep what they use, and the allocator counts it as free."""
    return torch.cuda.max_memory_reserved() if run.profile.uses_cuda_graphs else torch.cuda.max_memory_allocated()


def _warm_up(run: Run, batches: Iterator[StepBatch], rates: dict[str, float], met: Counter[Shape]) -> int:
    """Until everything is compiled and the shapes that are met most are recorded; returns the steps that it took."""
    number = 0
    for number, batch in enumerate(batches, start=1):
        _step(run, batch, rates, met)
        settled = sum(count for count in met.values() if count > SETTLED) > 0.9 * met.total()
        if number >= WARMUP_STEPS and not (run.profile.uses_cuda_graphs and run.ranks.any(not settled)):
            break  # on all ranks together: batches too large for every shape have shapes of their own
    wait(run.ranks.device)
    return number


def _may_record(run: Run, batch: StepBatch, met: Counter[Shape]) -> bool:
    """Whether this rank may record a shape in this step; without CUDA graphs one graph serves all."""
    return run.profile.uses_cuda_graphs and any(met[micro.packed.shape] < SETTLED for micro in batch.micro_batches)


def _step(run: Run, batch: StepBatch, rates: dict[str, float], met: Counter[Shape]) -> None:
    """Train one step and note the shapes it met."""
    met.update(micro.packed.shape for micro in batch.micro_batches)
    run.engine.step(batch.micro_batches, rates)
    run.engine.prove_phase()


def _split(run: Run, batch: StepBatch, rates: dict[str, float]) -> tuple[float, float, float]:
    """Seconds of forward, backward and optimizer of one step, waiting for the device after each."""
    device, engine = run.ranks.device, run.engine
    spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
    with engine.timed(lambda part: _clock(device, spent, part)):
        wait(device)
        engine.step(batch.micro_batches, rates)
    return spent["forward"], spent["backward"], spent["step"]


@contextmanager
def _clock(device: torch.device, spent: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    wait(device)
    spent[part] += time.perf_counter() - started


def main(argv: list[str] | None = None) -> int:
    """The launcher's entry."""
    return run_rank(measure, argv, resumes=False)


if __name__ == "__main__":
    exit_process(main())
