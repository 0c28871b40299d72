"""Two phases on two GPUs through NCCL and the real launcher: every ZeRO stage learns what one GPU learns, compiled and
replayed too, and a run that two GPUs began goes on on one.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.integration.test_flat_stages import SPECS
from tests.support import flat_worker
from tests.support.gpu_task import SPEC, gpu_profile, run_on_gpu
from tests.support.tiny_task import NO_EVALUATION, TRAIN_FILE, events, free_port, launcher, make_task, train_arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
STEPS, SWITCH, STOPS = 25, 10, (7, 15)
LOSS_TOLERANCE = 0.03
"""Absolute, in nats per token: bf16 weights and activations, sums over ranks in another order."""
LATE_TOLERANCE = 0.1
"""Over 100 steps, in which such differences grow."""


def train(
    task: Path,
    name: str,
    *changes: str,
    stage: int,
    ranks: int,
    port: int,
    resume: str = "never",
    cuda_graphs: bool = False,
) -> Path:
    """One run under the launcher; returns its directory."""
    run, profile = task / name, task / f"{name}-{stage}-{ranks}.json"
    gpu_profile(profile, stage=stage, micro=8 // ranks, ranks=ranks, cuda_graphs=cuda_graphs)
    arguments = train_arguments(task, run, *NO_EVALUATION, *changes, ds=profile, resume=resume)
    told = run_on_gpu([*launcher(ranks, port), str(TRAIN_FILE), *arguments])
    assert "could not be compiled" not in told and "skipping cudagraphs" not in told, told[-3000:]
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """All runs side by side: they are small, and most of their time is starting."""
    task = make_task(tmp_path_factory.mktemp("task"), train_clips=40, spec=SPEC)

    def moved(stop: int, port: int) -> Path:
        name = f"2 then 1, stopped after {stop}"
        train(task, name, f"max_steps={stop}", stage=2, ranks=2, port=port)
        return train(task, name, stage=2, ranks=1, port=port, resume="auto")

    with ThreadPoolExecutor() as pool:
        waiting = {"1 GPU": pool.submit(train, task, "one", stage=2, ranks=1, port=free_port())}
        for stage in (1, 2, 3):
            name = f"2 GPUs, ZeRO-{stage}"
            waiting[name] = pool.submit(train, task, name, stage=stage, ranks=2, port=free_port())
        for stop in STOPS:
            waiting[f"2 then 1, stopped after {stop}"] = pool.submit(moved, stop, free_port())
        return {name: job.result() for name, job in waiting.items()}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in events(run, "train")]


@pytest.mark.parametrize(
    "name", [*(f"2 GPUs, ZeRO-{stage}" for stage in (1, 2, 3)), *(f"2 then 1, stopped after {stop}" for stop in STOPS)]
)
def test_learns_what_one_gpu_learns(runs, name):
    expected, found = losses(runs["1 GPU"]), losses(runs[name])
    apart = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    print(f"{name}: losses {found[0]:.3f} to {found[-1]:.3f}, at most {apart:.4f} nats from one GPU's")
    assert len(found) == STEPS and expected[-1] < expected[0] - 0.5
    assert found == pytest.approx(expected, abs=LOSS_TOLERANCE)
    phases = [(row["step"], row["moved"] > 0.5 * row["compared"]) for row in events(runs[name], "phase")]
    assert phases[0] == (0, True) and (SWITCH, True) in phases


@pytest.mark.parametrize("compiled", [False, True])
def test_flat_stages_over_nccl_are_torchs_adamw_and_never_wait(compiled):
    """Gradients known to the bit, in buckets that cut through parameters: tests/integration/test_flat_stages.py."""
    specs = json.dumps([{**spec, "compiled": compiled} for spec in SPECS])
    run_on_gpu([*launcher(2, free_port()), str(flat_worker.__file__), specs, "cuda"])


def test_cuda_graphs_on_two_gpus_learn_what_one_gpu_learns(tmp_path):
    """Enough steps that most shapes are met, recorded and replayed in both phases; few layers, since each compiles.

    Between them the other runs evaluate, which records and replays decoding, and copy their state for checkpoints.
    """
    task = make_task(tmp_path, train_clips=160, spec=replace(SPEC, encoder_layers=2, num_hidden_layers=2))
    with ThreadPoolExecutor() as pool:
        eager = pool.submit(train, task, "one", stage=1, ranks=1, port=free_port())
        between = ("evaluation.every_steps=15", "evaluation.sample_clips=4", "checkpoints.every_steps=20")

        def replayed(stage: int) -> Path:
            return train(task, f"{stage}", *between, stage=stage, ranks=2, port=free_port(), cuda_graphs=True)

        runs = [*pool.map(replayed, (2, 3))]
        expected = losses(eager.result())
    for run in runs:
        found = losses(run)
        apart = [abs(a - b) for a, b in zip(expected, found, strict=True)]
        told = (
            f"losses {found[0]:.3f} to {found[-1]:.3f}, apart {max(apart[:STEPS]):.4f} early, {max(apart):.4f} in all"
        )
        print(f"ZeRO-{run.name}: {told}")
        assert len(found) == 4 * STEPS and expected[-1] < expected[0] - 0.5
        assert max(apart[:STEPS]) < LOSS_TOLERANCE and max(apart) < LATE_TOLERANCE
        phases = [(row["step"], row["moved"] > 0.5 * row["compared"]) for row in events(run, "phase")]
        assert phases == [(0, True), (4 * SWITCH, True)]
        assert not events(run, "fault")
