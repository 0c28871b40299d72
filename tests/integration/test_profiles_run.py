"""Every shipped hardware profile trains over the change of phase, with its own ZeRO keys, in small and on a CPU."""

from __future__ import annotations

import pytest

from hebrew_asr.config.profiles import load_profile
from tests.support.tiny_task import (
    NO_EVALUATION,
    ROOT,
    events,
    free_port,
    train_arguments,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
GPU_PROFILES = sorted(path for path in (ROOT / "ds_configs").glob("*.json") if path.stem != "cpu")
"""``cpu.json`` is what all the other tests train with."""


@pytest.mark.parametrize("path", GPU_PROFILES, ids=lambda path: path.stem)
def test_profile_trains_both_phases(task, warm, tmp_path, path):
    ranks = min(2, load_profile(path).hardware.num_ranks)
    hardware = {"accelerator": "cpu", "num_ranks": ranks}
    profile = write_profile(tmp_path / path.name, of=path, _hardware=hardware, train_micro_batch_size_per_gpu=2)
    arguments = train_arguments(task, tmp_path / "run", *NO_EVALUATION, "max_steps=7", ds=profile)
    done = warm.finish(arguments, ranks=ranks, port=free_port())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert [row["phase"] for row in events(tmp_path / "run", "train")] == ["B"] * 6 + ["A"]
    proofs = events(tmp_path / "run", "phase")
    assert [row["name"] for row in proofs] == ["B", "A"]
    assert all(0.5 * row["trainable"] < row["moved"] <= row["compared"] == row["trainable"] for row in proofs)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_what_deepspeed_refuses_while_it_builds_is_told_by_the_profiles_name(task, warm, tmp_path):
    """Its config models take such keys; there is evidence of where it refused."""
    profile = write_profile(tmp_path / "old.json", zero_optimization={"stage": 2, "legacy_stage1": True})
    run = tmp_path / "run"
    done = warm.finish(train_arguments(task, run, *NO_EVALUATION, ds=profile), ranks=2, port=free_port())
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    told = f"error: DeepSpeed cannot build an engine from hardware profile {profile}: "
    assert all(line.startswith(told) for line in done.stderr.splitlines() if "error" in line), done.stderr
    assert told in done.stderr and "Traceback" in (run / "crash" / "rank0" / "error.txt").read_text()
