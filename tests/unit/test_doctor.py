"""``hebrew-asr doctor``: right on a machine without GPUs, and about machines that are described to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hebrew_asr.checkpoints.disk_space import DiskNeed
from hebrew_asr.config.profiles import load_profile
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.planning import all_reduce, doctor
from hebrew_asr.planning.all_reduce import reduction
from hebrew_asr.planning.cards import Card, profile_for
from hebrew_asr.planning.doctor_access import wandb_login

ROOT = Path(__file__).parents[2]
A100, H100, SECRET = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "secret-of-a-user"


def examined(*options: str, **environment: str) -> subprocess.CompletedProcess:
    """A real start, on a machine that sees no GPU and no network."""
    alone = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    command = [sys.executable, "-m", "hebrew_asr.cli", "doctor", *options]
    return subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_machine_without_gpus_can_run_the_demo(tmp_path):
    done = examined("--json", "--run", str(tmp_path / "run"), WANDB_API_KEY=SECRET)
    told = json.loads(done.stdout)
    by_name = {check["name"]: check for check in told["checks"]}
    assert told["profile"] is None and "demo" in by_name["GPUs"]["says"] and by_name["GPUs"]["state"] == "warn"
    assert done.returncode == (0 if told["ok"] else 4)
    assert told["ok"] == all(check["state"] != "fail" for check in told["checks"])
    for name in ("corpus ivrit-ai/crowd-transcribe-v5", "model Qwen/Qwen3-ASR-1.7B", "clock"):
        assert by_name[name]["state"] == "warn", "offline is no failure"
    assert by_name["wandb"]["state"] == "ok" and SECRET not in done.stdout + done.stderr
    assert all(check["fix"] for check in told["checks"] if check["state"] == "fail")
    assert not list(tmp_path.iterdir())


def test_a_profile_for_gpus_fails_without_them(tmp_path):
    done = examined("--ds", "a100x8", "--run", str(tmp_path))
    assert done.returncode == 4
    assert "fail  GPUs: none, and profile a100x8 is for GPUs\n      -> check nvidia-smi" in done.stdout


def test_a_mistyped_place_is_no_question_of_the_network(tmp_path):
    done = examined("--data", "nowhere", "--run", str(tmp_path))
    assert done.returncode == 3 and done.stderr.startswith("error: no prepared set in nowhere"), done.stderr
    done = examined("--set", "model.path=./models/mistyped", "--run", str(tmp_path))
    assert done.returncode == 4 and "fail  model ./models/mistyped: no folder here" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("count", "name", "memory_gib", "profile"),
    [
        (8, A100, 79.3, "a100x8"),
        (8, "NVIDIA A100-SXM4-40GB", 39.4, "a100x8"),
        (2, A100, 79.3, "a100x2"),
        (1, A100, 79.3, "a100x1"),
        (8, H100, 79.6, "h100x8"),
        (1, H100, 79.6, "a100x1"),
        (4, H100, 79.6, "h200x4"),
        (8, "NVIDIA H200", 139.8, "h200x8"),
        (1, "NVIDIA H200", 139.8, "h200x1"),
        (8, "NVIDIA L40S", 44.5, "l40sx8"),
        (4, "NVIDIA A10G", 22.1, "a10gx4"),
        (4, "NVIDIA GeForce RTX 4090", 23.6, "a10gx4"),
        (1, "NVIDIA GeForce RTX 4090", 23.6, "rtx4090x1"),
        (1, "NVIDIA GeForce RTX 3060", 11.7, None),
        (0, A100, 79.3, None),
    ],
)
def test_the_profile_for_these_gpus(count, name, memory_gib, profile):
    assert profile_for([Card(name, memory_gib, (8, 0))] * count) == profile


@pytest.mark.parametrize(
    ("found", "state", "says"),
    [
        ([Card(A100, 79.3, (8, 0))] * 8, "ok", "A100"),
        ([Card("Tesla V100", 31.7, (7, 0))] * 8, "fail", "no bf16"),
        ([Card(A100, 79.3, (8, 0)), Card(H100, 79.6, (9, 0))], "warn", "waits for the slowest"),
        ([Card("NVIDIA A100-SXM4-40GB", 39.4, (8, 0))] * 8, "warn", "is for 80 GiB"),
        ([], "fail", "none"),
    ],
)
def test_gpus_that_do_and_do_not_suit(found, state, says):
    told = doctor._gpus(load_profile("a100x8"), found, profile_for(found))
    assert told[0] == state and says in told[1] and bool(told[2]) == (state != "ok")


def test_links_between_gpus_are_measured(monkeypatch):
    """The rate itself is measured on real ranks in ``tests/integration/test_bench.py``."""
    need = DiskNeed(12_000_000_000, 4, 1)
    bf16, fp32 = load_profile("a100x8"), load_profile("a100x1")
    assert reduction(1, need, bf16) == ("ok", "not measured: there are fewer than two GPUs", "")
    for rate, state in ((300.0, "ok"), (4.0, "warn")):
        monkeypatch.setattr(all_reduce, "bus_gb_per_s", lambda *_, rate=rate, **__: rate)
        told = reduction(2, need, bf16)
        assert told[0] == state and f"{rate:.0f} GB/s" in told[1] and bool(told[2]) == (state == "warn")
        assert f"take at most {1e9 / rate / 1e6:,.0f} ms" in told[1], (
            "half of 10⁹ weights leave a rank, in 2 bytes each"
        )
        assert f"take at most {2e9 / rate / 1e6:,.0f} ms" in reduction(2, need, fp32)[1]

    def fails(*_, **__):
        raise EnvironmentProblem("rank 1 ended with code 1: NCCL error")

    monkeypatch.setattr(all_reduce, "bus_gb_per_s", fails)
    told = reduction(2, None, bf16)
    assert told[0] == "fail" and "cannot add up gradients: rank 1 ended" in told[1] and told[2]


def test_a_time_out_that_is_none_fails(monkeypatch):
    monkeypatch.setenv("NCCL_TIMEOUT", "half an hour")
    assert doctor._time_out()[0] == "fail"
    monkeypatch.setenv("NCCL_TIMEOUT", "1800")
    assert doctor._time_out() == ("ok", "ranks wait 1,800 s for each other", "")


def test_a_disk_that_is_too_small_fails(tmp_path):
    free = doctor.shutil.disk_usage(tmp_path).free
    assert doctor._disk_space(DiskNeed(free, 4, free), tmp_path / "run")[0] == "fail"
    assert doctor._disk_space(DiskNeed(free // 2, 4, 1 << 20), tmp_path / "run")[0] == "warn"
    assert doctor._disk_space(DiskNeed(1 << 20, 4, 1 << 20), tmp_path / "run")[0] == "ok"
    assert doctor._disk_speed(DiskNeed(1 << 50, 4, 1), tmp_path)[0] == "warn", "a stop could not be saved in 30 s"


def test_what_a_run_takes_of_the_host():
    recipe, profile = load_recipe("round2"), load_profile("cpu")
    assert doctor._host_memory(DiskNeed(1 << 50, 4, 1), profile)[0] == "fail"
    assert doctor._cores(recipe, 10_000)[0] == "warn"
    assert doctor._cores(load_recipe("round2", ["data.workers=0"]), 1)[0] == "ok"


@pytest.mark.parametrize(("profile", "state"), [("cpu", "warn"), ("a100x8", "fail")])
def test_a_machine_too_small_for_the_real_model_is_none_too_small_for_the_demo(profile, state, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_need", lambda _: DiskNeed(1 << 60, 4, 1 << 60))
    monkeypatch.setattr(doctor, "_ANSWER_S", 0.0)
    found, _ = doctor.examine(load_recipe("round2"), load_profile(profile), tmp_path)
    states = {finding.name: finding.state for finding in found}
    assert states["disk space"] == states["host memory"] == state


def test_a_port_that_is_taken(monkeypatch):
    with doctor.socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert doctor._port()[0] == "fail"


def test_a_login_to_wandb_is_seen_and_never_said(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_login(wanted=True)[0] == "warn"
    assert wandb_login(wanted=False)[0] == "ok"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    told = wandb_login(wanted=True)
    assert told[0] == "ok" and SECRET not in str(told)
