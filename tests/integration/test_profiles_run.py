"""Every shipped hardware profile trains over the change of phase, with its own ZeRO keys, in small and on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_task import ROOT, TRAIN_FILE, events, make_task, spawn, train_arguments

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
GPU_PROFILES = sorted(path for path in (ROOT / "ds_configs").glob("*.json") if path.stem != "cpu")
"""``cpu.json`` is what all the other tests train with."""
QUICK = ("max_steps=7", "evaluation.at_start=false", "evaluation.full_each_epoch=false", "evaluation.sample_clips=1")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    return make_task(tmp_path_factory.mktemp("task"))


@pytest.mark.parametrize("path", GPU_PROFILES, ids=lambda path: path.stem)
def test_profile_trains_both_phases(task, tmp_path, path):
    shipped = json.loads(path.read_text(encoding="utf-8"))
    ranks = min(2, shipped["_hardware"]["num_ranks"])
    hardware = {"accelerator": "cpu", "num_ranks": ranks}
    profile = tmp_path / path.name
    profile.write_text(json.dumps({**shipped, "_hardware": hardware, "train_micro_batch_size_per_gpu": 2}))
    arguments = train_arguments(task, tmp_path / "run", *QUICK)
    arguments[arguments.index("--ds") + 1] = str(profile)
    done = spawn(TRAIN_FILE, arguments, ranks=ranks, port=29670 + GPU_PROFILES.index(path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert [row["phase"] for row in events(tmp_path / "run", "train")] == ["B"] * 6 + ["A"]
    proofs = events(tmp_path / "run", "phase")
    assert [row["name"] for row in proofs] == ["B", "A"]
    assert all(row["moved"] == row["trainable"] for row in proofs)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
