"""A GPU that really runs out of memory in a step: the step is run again in halves, and what is learned is the same."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.demo.tiny import save_tiny
from hebrew_asr.text.prompt import build_target
from tests.support import limited_memory
from tests.support.gpu_task import SPEC, gpu_profile, run_on_gpu
from tests.support.tiny_task import NO_EVALUATION, WORDS, events, train_arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLIPS = 16
LOSS_TOLERANCE = 0.03
"""Absolute, in nats per token: bf16 products of other sizes."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """Long clips, whose activations are most of what is allocated."""
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    for name, count in (("train", 2 * CLIPS), ("eval", 1)):
        clips = []
        for index in range(count):
            path = folder / "clips" / f"{name}{index}.wav"
            soundfile.write(path, (rng.standard_normal(14 * SAMPLE_RATE_HZ) * 3000).astype(np.int16), SAMPLE_RATE_HZ)
            text = " ".join(rng.choice(WORDS, size=12))
            clips.append(Clip(str(path), build_target(text), f"{name}{index}", 14.0, f"speaker{index}"))
        write_manifest(folder / "data" / f"{name}.jsonl", clips)
    save_tiny(folder / "base", SPEC, [" ".join(WORDS)], 0)
    return folder


def train(task: Path, name: str, stage: int, micro: int, limit_gib: float = 1e6) -> tuple[Path, float]:
    """Its run directory, and the most GiB that were allocated: what is cached beyond that can be given up."""
    run, profile, peak = task / name, task / f"{name}.json", task / f"{name}.peak"
    gpu_profile(profile, stage=stage, micro=micro)
    changes = (*NO_EVALUATION, f"clips_per_step={CLIPS}", "data.allow_outside=true")
    arguments = train_arguments(task, run, *changes, ds=profile)
    run_on_gpu([sys.executable, str(limited_memory.__file__), str(limit_gib), str(peak), *arguments])
    return run, float(peak.read_text())


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_that_does_not_fit_is_run_in_halves(task, stage):
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(train, task, f"{micro} of {stage}", stage, micro) for micro in (CLIPS, CLIPS // 2)]
        (whole, most_gib), (_, half_gib) = (job.result() for job in waiting)
    limit_gib = (most_gib + half_gib) / 2
    short, _ = train(task, f"short{stage}", stage, CLIPS, limit_gib)
    faults = events(short, "fault")
    print(f"ZeRO-{stage}: {most_gib:.2f} GiB whole, {half_gib:.2f} in halves, limit {limit_gib:.2f}: {faults}")
    assert faults and faults[0]["kind"] == "out-of-memory" and faults[0]["max_micro_batch"] == CLIPS // 2
    losses = [[row["loss"] for row in events(run, "train")] for run in (short, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=LOSS_TOLERANCE)
