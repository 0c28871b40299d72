"""One GPU's profile, in small and on a CPU: flat ZeRO, which skips the reduction over one rank, learns what DeepSpeed's
own ZeRO-2 learns, which runs where the optimizer is offloaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_task import ROOT, events, free_port, train_arguments, write_profile
from tests.support.warm import WarmStart

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def losses(warm: WarmStart, task: Path, run: Path, **keys: object) -> list[float]:
    """Train losses of the first six steps, two micro-batches each, on one rank in bf16."""
    keys = {"_hardware": {"accelerator": "cpu", "num_ranks": 1}, "train_micro_batch_size_per_gpu": 4, **keys}
    profile = write_profile(run.with_suffix(".json"), of=ROOT / "ds_configs" / "h200x1.json", **keys)
    changes = ("max_steps=6", "evaluation.at_start=false", "evaluation.sample_clips=1")
    done = warm.finish(train_arguments(task, run, *changes, ds=profile), port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [row["loss"] for row in events(run, "train")]


def test_the_shortcut_of_one_rank_changes_nothing(task, warm, tmp_path):
    short = losses(warm, task, tmp_path / "short")
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    long = losses(warm, task, tmp_path / "long", zero_optimization=offloaded)
    assert len(short) == 6 and short[-1] < short[0]
    assert short == pytest.approx(long, abs=2e-3)
