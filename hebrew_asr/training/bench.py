"""Steady-state speed of the real trainer: its loader, augmentation, engine and optimizer, in every phase.

The DeepSpeed launcher runs this file: ``bench.py '{"ds": …, "recipe": …, "set": […], "steps": 20, "out": …}'``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from hebrew_asr.data.loader import load_steps
from hebrew_asr.engine import dist
from hebrew_asr.errors import HebrewASRError
from hebrew_asr.files import write_json
from hebrew_asr.training.feed import FedStep, feed
from hebrew_asr.training.flops import step_flops
from hebrew_asr.training.setup import Run, TrainArguments, set_up

WARMUP_STEPS, SPLIT_STEPS = 8, 5


@dataclass(frozen=True)
class PhaseSpeed:
    """Figures of one phase; all ranks together unless named otherwise."""

    phase: str
    clips_per_s: float
    audio_s_per_s: float
    tokens_per_s: float
    ms_per_step: float
    """Mean over steps that compiled nothing."""
    steps: int
    compile_s: float
    """Beyond an ordinary step, in the steps that met a shape for the first time."""
    data_wait_share: float
    """Time in which the training thread waited for data, of all."""
    forward_ms: float
    """This and the next two: median on the first rank with a wait after each part, so their sum exceeds a step."""
    backward_ms: float
    optimizer_ms: float
    """With communication that backward does not hide."""
    tflops: float
    """Of one device, counted by :mod:`hebrew_asr.training.flops`."""
    mfu: float
    """Of the ceiling."""
    padding_share: float
    """Tokens of padding, of all tokens."""
    peak_gib: float


def matmul_ceiling_tflops(device: torch.device) -> float:
    """Rate of a large matrix product: bfloat16 on CUDA, float32 on a CPU."""
    on_cuda = device.type == "cuda"
    size, repeats, dtype = (8192, 20, torch.bfloat16) if on_cuda else (512, 5, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    _wait(device)
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e12


def measure(arguments: TrainArguments, steps: int, out: Path) -> None:
    """Run every phase for a while and write figures to ``out`` after each; collective."""
    run = set_up(arguments)
    figures: dict[str, Any] = {
        "profile": run.profile.name,
        "num_ranks": run.ranks.size,
        "device": torch.cuda.get_device_name() if run.ranks.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "clips_per_step": run.recipe.clips_per_step,
        "batching": str(run.plan),
        "ceiling_tflops": matmul_ceiling_tflops(run.ranks.device),
        "phases": [],
    }
    for index in range(len(run.recipe.phases)):
        figures["phases"].append(asdict(_measure_phase(run, index, steps, figures["ceiling_tflops"])))
        if run.ranks.is_main:
            write_json(out, figures)
    run.tracker.close()
    run.engine.close()


def _measure_phase(run: Run, index: int, steps: int, ceiling_tflops: float) -> PhaseSpeed:
    device, on_cuda = run.ranks.device, run.ranks.device.type == "cuda"
    run.engine.enter_phase(index)
    first = run.schedule.phase_starts[index]
    stop = first + WARMUP_STEPS + steps + SPLIT_STEPS
    loaded = load_steps(run.dataset, first, stop, workers=run.recipe.data.workers, pin_memory=on_cuda)
    fed_steps = feed(loaded, run.mel, device)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    seen: set[Any] = set()
    timed: list[tuple[float, float, bool, FedStep]] = []
    for _ in range(WARMUP_STEPS):
        _step(run, next(fed_steps), seen)
    _wait(device)
    for _ in range(steps):
        started = time.perf_counter()
        fed = next(fed_steps)
        new = _step(run, fed, seen)
        if new:
            _wait(device)
        timed.append((time.perf_counter() - started, fed.wait_s, new, fed))
    started = time.perf_counter()
    _wait(device)
    trailing_s = time.perf_counter() - started
    parts = [_split(run, fed) for fed in fed_steps]
    forward_ms, backward_ms, optimizer_ms = (1e3 * sorted(part)[len(part) // 2] for part in zip(*parts, strict=True))
    usual = [(seconds, wait_s, fed) for seconds, wait_s, new, fed in timed if not new] or [
        timed[-1][:2] + timed[-1][3:]
    ]
    seconds = sum(entry[0] for entry in usual) + trailing_s
    batches = [micro.inputs[0] for *_, fed in usual for micro in fed.micro_batches if micro.num_labels]
    padded = sum(len(batch.input_ids_T) for batch in batches)
    own = [
        float(sum(len(batch.tokens) for batch in batches)),
        sum(sum(batch.samples) for batch in batches) / 16_000,
        float(sum(sum(batch.tokens) for batch in batches)),
        step_flops(run.asr, batches) / 1e12,
    ]
    clips, audio_s, tokens, tflop = run.ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
    tflops = tflop / run.ranks.size / seconds
    return PhaseSpeed(
        phase=run.recipe.phases[index].name,
        clips_per_s=clips / seconds,
        audio_s_per_s=audio_s / seconds,
        tokens_per_s=tokens / seconds,
        ms_per_step=1e3 * seconds / len(usual),
        steps=len(usual),
        compile_s=sum(entry[0] for entry in timed if entry[2]),
        data_wait_share=sum(entry[1] for entry in usual) / seconds,
        forward_ms=forward_ms,
        backward_ms=backward_ms,
        optimizer_ms=optimizer_ms,
        tflops=tflops,
        mfu=tflops / ceiling_tflops,
        padding_share=1 - own[2] / padded,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if on_cuda else 0.0,
    )


def _step(run: Run, fed: FedStep, seen: set[Any]) -> bool:
    """Train one step; whether it met a shape for the first time."""
    shapes = {(len(micro.inputs[0].input_ids_T), len(micro.inputs[0].labels_L)) for micro in fed.micro_batches}
    new = run.profile.compiles and not shapes <= seen
    seen |= shapes
    run.engine.step(fed.micro_batches, run.schedule.rates(fed.step))
    run.engine.prove_phase()
    return new


def _split(run: Run, fed: FedStep) -> tuple[float, float, float]:
    """Seconds of forward, backward and optimizer of one step, waiting for the device after each."""
    device, engine = run.ranks.device, run.engine
    spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
    with engine.timed(lambda part: _clock(device, spent, part)):
        _wait(device)
        engine.step(fed.micro_batches, run.schedule.rates(fed.step))
    return spent["forward"], spent["backward"], spent["step"]


@contextmanager
def _clock(device: torch.device, spent: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    _wait(device)
    spent[part] += time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: list[str]) -> int:
    """The launcher's entry."""
    spec = json.loads(next(part for part in argv if not part.startswith("--local_rank")))
    arguments = TrainArguments(ds=spec["ds"], recipe=spec["recipe"], set=spec["set"], run_dir=spec["run"])
    try:
        measure(arguments, spec["steps"], Path(spec["out"]))
    except HebrewASRError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    dist.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
