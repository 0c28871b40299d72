"""Every shipped hardware profile trains over the change of phase, with its own ZeRO keys, in small and on a CPU."""

from __future__ import annotations

import pytest

from hebrew_asr.config.profiles import load_profile
from tests.support.tiny_task import (
    NO_EVALUATION,
    ROOT,
    TRAIN_FILE,
    events,
    free_port,
    launch,
    train_arguments,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
GPU_PROFILES = sorted(path for path in (ROOT / "ds_configs").glob("*.json") if path.stem != "cpu")
"""``cpu.json`` is what all the other tests train with."""
LAUNCHED = ROOT / "ds_configs" / "a100x8.json"
"""Through DeepSpeed's launcher, as the README says."""


@pytest.mark.parametrize("path", GPU_PROFILES, ids=lambda path: path.stem)
def test_profile_trains_both_phases(task, warm, tmp_path, path):
    ranks = min(2, load_profile(path).hardware.num_ranks)
    hardware = {"accelerator": "cpu", "num_ranks": ranks}
    profile = write_profile(tmp_path / path.name, of=path, _hardware=hardware, train_micro_batch_size_per_gpu=2)
    arguments = train_arguments(task, tmp_path / "run", *NO_EVALUATION, "max_steps=7", ds=profile)
    port = free_port()
    if path == LAUNCHED:
        done = launch(TRAIN_FILE, arguments, ranks=ranks, port=port)
    else:
        done = warm.finish(arguments, ranks=ranks, port=port)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert [row["phase"] for row in events(tmp_path / "run", "train")] == ["B"] * 6 + ["A"]
    proofs = events(tmp_path / "run", "phase")
    assert [row["name"] for row in proofs] == ["B", "A"]
    assert all(0.5 * row["trainable"] < row["moved"] <= row["compared"] == row["trainable"] for row in proofs)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
