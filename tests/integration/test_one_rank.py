"""One GPU's profile, in small and on a CPU: ZeRO-1 that skips the reduction over one rank learns what ZeRO-2 learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_task import ROOT, TRAIN_FILE, launch, make_task, train_arguments

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def losses(task: Path, run: Path, port: int, **keys: object) -> list[float]:
    """Train losses of the first six steps, two micro-batches each, on one rank in bf16."""
    shipped = json.loads((ROOT / "ds_configs" / "h200x1.json").read_text(encoding="utf-8"))
    profile = task / f"{run.name}.json"
    hardware = {"accelerator": "cpu", "num_ranks": 1}
    profile.write_text(json.dumps({**shipped, "_hardware": hardware, "train_micro_batch_size_per_gpu": 4, **keys}))
    arguments = train_arguments(task, run, "max_steps=6", "evaluation.at_start=false", "evaluation.sample_clips=1")
    arguments[arguments.index("--ds") + 1] = str(profile)
    done = launch(TRAIN_FILE, arguments, ranks=1, port=port)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["event"] == "train"]


def test_the_shortcut_of_one_rank_changes_nothing(tmp_path):
    task = make_task(tmp_path / "task")
    short = losses(task, tmp_path / "short", 29671)
    long = losses(task, tmp_path / "long", 29672, zero_optimization={"stage": 2}, bf16={"enabled": True})
    assert len(short) == 6 and short[-1] < short[0]
    assert short == pytest.approx(long, abs=2e-3)
