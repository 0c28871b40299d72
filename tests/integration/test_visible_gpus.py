"""Ranks get the GPUs that CUDA_VISIBLE_DEVICES names, in its order, through DeepSpeed's own launch.py."""

from __future__ import annotations

import subprocess

import pytest

from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.launching.command import launch_for

pytestmark = pytest.mark.integration
A, B = "GPU-8e2f1a30-0000-0000-0000-000000000000", "GPU-71"
MIG = "MIG-42d7ac4a-5d3a-5b2c-8d8f-1f6d6b3f0a11"


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """The launch of a script that prints its rank and GPUs, on a machine that shows so many."""
    script = tmp_path / "rank.py"
    # Written by one call, so that the lines of ranks that write at once stay whole.
    script.write_text("import os; os.write(1, 'rank {RANK} {CUDA_VISIBLE_DEVICES}\\n'.format(**os.environ).encode())")

    def prepared(visible: str | None, shown: int, num_ranks: int | None = None, accelerator="cuda"):
        monkeypatch.setattr("torch.cuda.device_count", lambda: shown)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return launch_for(script, [], num_ranks, None, on_gpus=accelerator == "cuda", usual_ranks=2)

    return prepared


@pytest.mark.parametrize(
    ("visible", "shown", "num_ranks", "devices"),
    [
        (None, 8, None, "0,1,2,3,4,5,6,7"),
        (None, 8, 2, "0,1"),
        ("3,1", 2, None, "3,1"),
        (" 6, 2 ,4", 3, 2, "6,2"),
        (f"{A},{B}", 2, None, f"{A},{B}"),
        (MIG, 1, None, MIG),
        ("5,-1,2", 1, None, "5"),
        ("", 0, None, "0,1"),  # no GPU: the check of the hardware, which comes next, says so
    ],
)
def test_ranks_get_the_visible_gpus_in_order(launch, visible, shown, num_ranks, devices):
    assert ",".join(launch(visible, shown, num_ranks).devices) == devices


def test_deepspeed_hands_them_on(launch):
    started = launch(f"3,{A},1", 3)
    environment = {**started.environment(), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(started.line(), env=environment, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} 3,{A},1" for rank in range(3)]


@pytest.mark.parametrize(
    ("visible", "shown", "num_ranks", "told"),
    [
        ("0,9", 1, None, "CUDA_VISIBLE_DEVICES=0,9: CUDA can use 1 of the 2 GPUs named"),
        ("0,0", 0, None, "0 of the 2 GPUs named; name each once"),
        ("all", 0, None, "CUDA can use 0 of the 1 GPUs named"),
        (f"{MIG},{MIG[:-1]}2", 2, None, "cannot train on several"),
        ("4,5", 2, 8, "--num-gpus 8: there are 2 GPUs, which CUDA_VISIBLE_DEVICES allows"),
        (None, 2, 8, "--num-gpus 8: there are 2 GPUs on this machine"),
    ],
)
def test_what_cannot_be_used_is_told(launch, visible, shown, num_ranks, told):
    with pytest.raises(EnvironmentProblem, match=told):
        launch(visible, shown, num_ranks)


def test_ranks_on_the_cpu_take_no_notice(launch):
    launched = launch("7", 1, 3, accelerator="cpu")
    assert (launched.num_ranks, launched.environment()["DS_ACCELERATOR"]) == (3, "cpu")
