"""A real CUDA out-of-memory error in a step: the step is run again in smaller micro-batches and learns the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import cramped, tiny_task
from tests.support.tiny_task import ROOT, environment, events, make_task, train_arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CHANGES = ("max_steps=3", "evaluation.at_start=false", "evaluation.sample_clips=1", "evaluation.full_each_epoch=false")
LOSS_TOLERANCE = 2e-3
"""Absolute, in nats per token: float32 on a GPU, sums in another order, atomics among them."""


def train(task: Path, run: Path, micro: int, limit_bytes: int = 0) -> tuple[int, str]:
    """Train on one GPU in float32; the peak of allocated memory in bytes, and the output."""
    profile = {
        "_hardware": {"accelerator": "cuda", "num_ranks": 1, "compile": False},
        "train_micro_batch_size_per_gpu": micro,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000},
    }
    path = run.with_suffix(".json")
    path.write_text(json.dumps(profile))
    arguments = train_arguments(task, run, *CHANGES)
    arguments[arguments.index("--ds") + 1] = str(path)
    line = [sys.executable, cramped.__file__, str(limit_bytes), *arguments]
    env = {**environment(), "DS_ACCELERATOR": "cuda"}
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    peak = re.search(r"peak bytes (\d+)", output)
    assert peak is not None
    return int(peak[1]), output


def test_a_real_shortage_halves_the_micro_batch(tmp_path, monkeypatch):
    """Clips of 5 to 26 s; the limit lies between what 2 clips take at a time and what 8 do, as measured first."""
    # Wide in the feed-forward layers: activations that outweigh the optimizer's state.
    wide = replace(tiny_task.SPEC, hidden_size=256, intermediate_size=8192, num_hidden_layers=4)
    monkeypatch.setattr(tiny_task, "SPEC", wide)
    task = make_task(tmp_path / "task", train_clips=8, eval_clips=1, stretch=12.0)
    large, _ = train(task, tmp_path / "large", 8)
    small, _ = train(task, tmp_path / "small", 2)
    assert large > 1.3 * small, "the task does not tell a large micro-batch from a small one"
    limit = small + (large - small) // 2
    run = tmp_path / "cramped"
    _, output = train(task, run, 8, limit)
    faults = events(run, "fault")
    assert faults and {row["kind"] for row in faults} == {"out-of-memory"}
    assert faults[0]["step"] == 1 and faults[-1]["max_micro_batch"] in (1, 2, 4)
    assert "ran out of device memory in" in output
    ours, theirs = events(run, "train"), events(tmp_path / "large", "train")
    for key in ("step", "clips", "audio_s", "tokens"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=LOSS_TOLERANCE)
