"""``hebrew-asr bench`` on a CPU: the same path as on GPUs, in small."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from hebrew_asr import cli
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.demo.tiny import save_tiny
from hebrew_asr.errors import EnvironmentProblem, Preempted
from hebrew_asr.planning import all_reduce
from hebrew_asr.planning.bench_corpus import make_corpus
from hebrew_asr.planning.lr_curve import has_diverged
from hebrew_asr.planning.lr_range import LrRangeArguments
from hebrew_asr.speed.bench import BenchArguments
from hebrew_asr.training.arguments import as_argv
from tests.support.disks import small_disk
from tests.support.tiny_task import (
    BF16,
    NO_EVALUATION,
    ROOT,
    SPEC,
    WORDS,
    environment,
    free_port,
    train_arguments,
    wait_for,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_bench_measures_both_phases(tmp_path, capfd):
    """And Hugging Face's Trainer beside them, where accelerate is there, which it needs."""
    baseline = find_spec("accelerate") is not None
    save_tiny(tmp_path / "model", SPEC, [" ".join(WORDS)], 0)
    out = tmp_path / "figures.json"
    changes = [
        "clips_per_step=4",
        "data.workers=1",
        "evaluation.sample_clips=1",
        'data.temperature={"A": 2}',
        'unfrozen_layers={"llm_top": 2, "audio_top": 2}',
    ]
    options = ["--steps", "3", "--num-gpus", "1", "--out", str(out), "--also-clips", "2"]
    options += ["--baseline", "--baseline-steps", "1"] if baseline else []
    sets = [part for change in changes for part in ("--set", change)]
    code = cli.main(
        ["bench", "--ds", str(ROOT / "ds_configs" / "cpu.json"), "--model", str(tmp_path / "model"), *options, *sets]
    )
    told = capfd.readouterr()
    assert code == 0, told.out[-2000:] + told.err[-2000:]
    figures = json.loads(out.read_text())
    assert [(phase["phase"], phase["clips_per_step"]) for phase in figures["phases"]] == [
        *(("B", 4), ("B", 2), ("A", 4), ("A", 2))
    ]
    for phase in figures["phases"]:
        assert phase["steps"] == 3 and phase["padding_share"] == 0
        assert phase["clips_per_s"] == pytest.approx(phase["clips_per_step"] / phase["ms_per_step"] * 1e3)
        assert 0 < phase["median_ms"] <= phase["slowest_ms"] and phase["ms_per_step"] <= phase["slowest_ms"]
        assert 2 < phase["audio_s_per_s"] / phase["clips_per_s"] < 9
        assert min(phase["forward_ms"], phase["backward_ms"], phase["optimizer_ms"], phase["mfu"]) > 0
        assert 0 <= phase["data_wait_share"] < 1 and phase["exposed_ms"] is None
    assert figures["startup_s"] > 0
    assert "5 epochs of 186,812 clips would take" in told.out and "network alone" not in told.out
    assert "clips/s" in told.out and "evaluating 1 clip stops training for" in told.out
    assert figures["interruptions"]["evaluated_clips"] == 1 and figures["interruptions"]["checkpoint_s"] > 0
    if not baseline:
        return
    assert [entry["micro_batch"] for entry in figures["baseline"]] == [4]
    assert figures["ratios"]["to_best_micro_batch"] == pytest.approx(
        figures["phases"][0]["clips_per_s"] / figures["baseline"][0]["clips_per_s"]
    )
    assert "micro-batch 4" in told.out


def test_ranks_settle_together(tmp_path, warm):
    """With CUDA graphs the first meetings of a shape do not count; each rank meets shapes of its own."""
    spec = replace(SPEC, encoder_layers=1, num_hidden_layers=1)
    save_tiny(tmp_path / "model", spec, [" ".join(WORDS)], 0)
    make_corpus(tmp_path / "data", 6)  # in eight shapes: one rank has settled after 22 steps, the other after 35
    hardware = {"accelerator": "cpu", "num_ranks": 2, "compile": True, "cuda_graphs": True}
    changes = {
        "model.path": tmp_path / "model",
        "data.folder": tmp_path / "data",
        "data.workers": 1,
        "evaluation.sample_clips": 1,
        "logging.wandb": "false",
        "logging.report": "false",
        "clips_per_step": 4,
        "augmentation.speed_factors": "[1.0]",
        "unfrozen_layers": '{"llm_top": 1, "audio_top": 1}',
    }
    arguments = BenchArguments(
        ds=str(write_profile(tmp_path / "graphs.json", _hardware=hardware, zero_optimization={"stage": 2}, **BF16)),
        set=[f"{name}={value}" for name, value in changes.items()],
        run_dir=str(tmp_path / "run"),
        phases=["B"],
        sizes=[4],
        steps=5,
        out=tmp_path / "figures.json",
        traces=tmp_path / "traces",
    )
    options = as_argv(arguments, BenchArguments)
    # On a CPU attention cannot be compiled, so nothing is: what is waited for is the same.
    done = warm.finish(options, ranks=2, port=free_port(), program="hebrew_asr.speed.bench")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(phase["phase"], phase["steps"]) for phase in figures["phases"]] == [("B", 5)]
    for name in ("B-4-rank0", "B-4-rank1"):
        assert "Self CPU" in (tmp_path / "traces" / f"{name}.txt").read_text()
        assert (tmp_path / "traces" / f"{name}.json.gz").stat().st_size


def test_it_needs_no_room_for_checkpoints(task, warm, tmp_path):
    """It is in the folder for temporary files, often a small disk, and copies its state in memory alone."""
    arguments = [*train_arguments(task, tmp_path / "disk" / "run", *NO_EVALUATION), "--phases", "B", "--sizes", "8"]
    arguments += ["--steps", "2", "--out", str(tmp_path / "figures.json")]
    with small_disk(tmp_path / "disk", "300k"):
        done = warm.finish(arguments, ranks=1, port=free_port(), program="hebrew_asr.speed.bench")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "figures.json").read_text())["interruptions"]["checkpoint_s"] > 0


def test_a_stop_while_it_evaluates_leaves_no_figures(task, warm, tmp_path):
    """An evaluation that was asked to stop ends early, so its seconds are of nothing."""
    arguments = [*train_arguments(task, tmp_path / "run"), "--phases", "B", "--sizes", "8"]
    arguments += ["--steps", "2", "--out", str(tmp_path / "figures.json")]
    (tmp_path / "run").mkdir()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.02):  # nothing but an evaluation looks for it here, but set-up takes it away
            (tmp_path / "run" / "STOP").touch()

    with ThreadPoolExecutor(1) as aside:
        asking = aside.submit(ask)
        done = warm.finish(arguments, ranks=1, port=free_port(), program="hebrew_asr.speed.bench")
        is_over.set()
    asking.result()
    assert done.returncode == Preempted.exit_code, done.stdout[-2000:] + done.stderr[-2000:]
    assert "nothing is kept of a measurement" in done.stderr and not (tmp_path / "figures.json").exists()


def test_a_range_test_raises_rates_and_keeps_nothing(tmp_path, warm):
    """Two ranks, until the loss bursts; the loop is that of training."""
    save_tiny(tmp_path / "model", SPEC, [" ".join(WORDS)], 0)
    make_corpus(tmp_path / "data", 16)
    changes = {
        "model.path": tmp_path / "model",
        "data.workers": 0,
        "logging.wandb": "false",
        "logging.every_steps": 1,
        "evaluation.at_start": "false",
        "checkpoints.every_steps": 1,
        "clips_per_step": 4,
        "unfrozen_layers": '{"llm_top": 2, "audio_top": 2}',
    }
    arguments = LrRangeArguments(
        ds=str(write_profile(tmp_path / "two.json")),
        set=[f"{name}={value}" for name, value in changes.items()],
        data=str(tmp_path / "data"),
        run_dir=str(tmp_path / "run"),
        phase="A",
        steps=40,
        lowest=0.1,
        highest=1e6,
        out=tmp_path / "curve.json",
    )
    options = as_argv(arguments, LrRangeArguments)
    done = warm.finish(options, ranks=2, port=free_port(), program="hebrew_asr.planning.lr_range")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    curve = json.loads((tmp_path / "curve.json").read_text())
    steps = len(curve["losses"])
    assert 10 < steps < 40 and has_diverged([loss or math.nan for loss in curve["losses"]]), "it ends where it bursts"
    assert curve["factors"][0] == 0.1 and curve["factors"][1] / 0.1 == pytest.approx(1e7 ** (1 / 39))
    trained = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in trained if record["event"] == "train"]
    rates = load_recipe("round2").phases[1].learning_rates
    for record, factor in zip(trained, curve["factors"], strict=True):
        assert record["phase"] == "A" and record["lr"] == pytest.approx({g: r * factor for g, r in rates.items()})
    assert not list((tmp_path / "run").rglob("*.safetensors")) and not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_range_test_that_does_not_fit_offers_no_resume(task, warm, tmp_path):
    """Under ZeRO-2 in fp32, where ranks cannot agree on smaller micro-batches."""
    arguments = [*train_arguments(task, tmp_path / "run"), "--phase", "B", "--steps", "1000"]
    arguments += ["--out", str(tmp_path / "curve.json")]
    shortages = [{"part": "backward", "after": 2, "fits": 0, "ranks": [1]}]
    module, output = "hebrew_asr.planning.lr_range", tmp_path / "log"
    codes = warm.run(arguments, ranks=2, port=free_port(), output=output, program=module, shortages=shortages)
    assert codes[1] == 4 and codes[0] != 0, output.read_text()
    assert "error: out of device memory in backward on rank 1: CUDA out of memory" in output.read_text()
    assert "--resume" not in output.read_text() and not (tmp_path / "run" / "max_micro_batch.json").exists()


def test_a_bench_that_does_not_fit_is_one_line(task, warm, tmp_path):
    arguments = [*train_arguments(task, tmp_path / "run"), "--phases", "B", "--sizes", "8"]
    shortages = [{"part": "forward", "after": 1, "fits": 0, "ranks": [1]}]
    module = "hebrew_asr.speed.bench"
    done = warm.finish(arguments, ranks=2, port=free_port(), program=module, shortages=shortages)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error" in line)
    assert line.startswith("error: out of device memory in forward on rank 1: CUDA out of memory. Tried to allocate")
    assert line.endswith("; take a smaller train_micro_batch_size_per_gpu")


def test_the_rate_of_gradients_between_ranks(monkeypatch):
    """Over gloo, as ``doctor`` measures it between GPUs; ranks that fail or hang are told and gone."""
    started = time.monotonic()
    assert 0.01 < all_reduce.bus_gb_per_s(2, "cpu", limit_s=120) < 1000
    with pytest.raises(EnvironmentProblem, match=r"rank [01] ended with code 1: \w"):
        all_reduce.bus_gb_per_s(2, "cuda", limit_s=120)
    with pytest.raises(EnvironmentProblem, match=r"had not reduced anything after 0\.2 s"):
        all_reduce.bus_gb_per_s(2, "cpu", limit_s=0.2)
    assert time.monotonic() - started < 200
    assert not [one for one in psutil.Process().children() if "all_reduce" in " ".join(one.cmdline())]


@pytest.mark.parametrize("command", ["bench", "lr-range"])
def test_a_stop_leaves_nothing_behind(tmp_path, command):
    """SIGTERM to the command alone: before it has ranks, and while they train."""
    save_tiny(tmp_path / "model", SPEC, [" ".join(WORDS)], 0)
    make_corpus(tmp_path / "data", 16)
    work = Path(tempfile.mkdtemp())  # a path that is short enough for sockets
    changes = ["clips_per_step=4", "data.workers=1", 'unfrozen_layers={"llm_top": 2, "audio_top": 2}']
    model, data = str(tmp_path / "model"), str(tmp_path / "data")
    options = ["--model", model] if command == "bench" else ["--data", data, "--set", f"model.path={model}"]
    sets = [part for change in changes for part in ("--set", change)]
    line = [sys.executable, "-m", "hebrew_asr.cli", command, "--ds", str(ROOT / "ds_configs" / "cpu.json")]
    line += ["--num-gpus", "1", "--steps", "100000", *options, *sets]
    for moment in ("", "/run/metrics.jsonl"):
        stop_once_there(line, work, tmp_path / "output", f"[.h]*{moment}")
        assert not [*work.iterdir()]
    work.rmdir()


def stop_once_there(line: list[str], work: Path, output: Path, pattern: str) -> None:
    """SIGTERM to a command as soon as a file is in the folder ``work``, where its temporary ones are too."""
    variables = {**environment(), "TMPDIR": str(work)}
    with output.open("w") as opened:
        process = subprocess.Popen(line, cwd=work, env=variables, stdout=opened, stderr=subprocess.STDOUT)
    own = psutil.Process(process.pid)
    wait_for(lambda: [*work.glob(pattern)], lambda: process.poll() is not None and output.read_text())
    started = own.children(recursive=True)
    process.terminate()
    assert process.wait(60) == Preempted.exit_code, output.read_text()
    assert output.read_text().splitlines()[-1] == "stopped (SIGTERM): nothing is kept of a measurement"
    assert "Traceback" not in output.read_text() and not [child for child in started if child.is_running()]


@pytest.mark.parametrize("options", [["--phase", "C"], ["--phase", "A", "--baseline"]])
def test_a_phase_that_cannot_be_measured_is_one_line(capfd, options):
    code = cli.main(["bench", "--ds", str(ROOT / "ds_configs" / "cpu.json"), *options])
    assert code == 2 and "phase" in capfd.readouterr().err
