"""Things go wrong for real: NaN gradients, damaged files, a full disk, killed ranks, stops at awkward moments."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from hebrew_asr.checkpoints.store import find_checkpoints
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.report.page import write_report
from tests.support.tiny_task import (
    CPU_PROFILE,
    ENDLESS,
    NO_EVALUATION,
    TRAIN_FILE,
    environment,
    events,
    free_port,
    last_step,
    make_task,
    train_arguments,
    wait_for,
    without_times,
    write_profile,
)
from tests.support.warm import has_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    return make_task(tmp_path_factory.mktemp("task"), eval_clips=12)


def overflowing(task: Path, folder: Path) -> str:
    """The task's base model with weights that are finite and whose logits are not; the setting that names it."""
    shutil.copytree(task / "base", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.norm.weight"].fill_(3e38)
    weights["model.language_model.embed_tokens.weight"].mul_(100)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return f"model.path={folder}"


def test_nan_gradients_are_borne_then_told(task, warm, tmp_path):
    """A model that overflows: steps are skipped on both ranks, then the run stops and keeps the evidence."""
    run = tmp_path / "run"
    changes = [overflowing(task, tmp_path / "base"), "faults.non_finite_patience=2", *NO_EVALUATION]
    done = warm.finish(train_arguments(task, run, *changes), ranks=2, port=free_port())
    assert done.returncode == 6
    (line,) = (line for line in done.stderr.splitlines() if "error" in line)  # of two ranks
    assert "NaN or infinite 3 steps in a row" in line and "not saved; there is no checkpoint" in line
    assert "Traceback" not in done.stderr and not (run / "checkpoints").exists()
    faults = events(run, "fault")
    assert [row["kind"] for row in faults] == ["non-finite"] * 2
    assert all(len(row["clips"]) >= 4 for row in faults)
    assert {(row["clips"], row["audio_s"]) for row in events(run, "train")} == {(0, 0.0)}, "nothing was trained"
    for rank in (0, 1):
        evidence = json.loads((run / "crash" / f"rank{rank}" / "batch.json").read_text())
        assert evidence["micro_batches"][0]["clips"]
        assert "in a row" in (run / "crash" / f"rank{rank}" / "error.txt").read_text()


def test_unreadable_clips_are_skipped_within_the_budget(warm, tmp_path):
    task = make_task(tmp_path / "task")
    clips, run = task / "data" / "clips", tmp_path / "run"
    soundfile.write(clips / "train3.wav", np.zeros(1_200 * 16_000, np.int16), 16_000)  # its manifest says 2 s at most
    changes = ["faults.max_unreadable_share=0.05", *NO_EVALUATION]
    done = warm.finish(train_arguments(task, run, *changes, "max_steps=6"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    faults = events(run, "fault")
    assert [row["clips"] for row in faults] == [["train3"]] * 2, "once in each of the two epochs"
    assert all(re.search(r"train3\.wav.* lasts longer than", row["reasons"][0]) for row in faults)
    train = events(run, "train")
    assert len(train) == 6
    assert all(row["loss"] > 0 for row in train)
    durations = {clip.id: clip.duration_s for clip in read_manifest(task / "data" / "train.jsonl")}
    for epoch in (1, 2):
        steps = [row for row in train if row["epoch"] == epoch]
        assert sum(row["clips"] for row in steps) == len(durations) - 1, "what could not be read has not trained"
        assert sum(row["audio_s"] for row in steps) == pytest.approx(
            sum(durations.values()) - durations["train3"], abs=0.01
        )
    # The one clip that the recipe allows was met before the resume.
    sound = (clips / "train5.wav").read_bytes()
    (clips / "train5.wav").write_bytes(b"RIFF")
    done = warm.finish(train_arguments(task, run, *changes, "max_steps=9", resume="auto"), ranks=2, port=free_port())
    assert done.returncode == 3
    (line,) = (line for line in done.stderr.splitlines() if "error" in line)  # of two ranks
    assert "2 unreadable clips, the recipe allows 1" in line and "Traceback" not in done.stderr
    trained, (newest, *_) = last_step(run), reversed(find_checkpoints(run / "checkpoints"))
    assert 6 < trained == newest.step and line.endswith(
        f"; stopped after step {trained}, state saved in {run}; go on with --resume auto"
    )
    assert events(run, "fault")[-1]["clips"] == ["train5"] and events(run, "fault")[-1]["step"] == trained
    (clips / "train5.wav").write_bytes(sound)
    done = warm.finish(train_arguments(task, run, *changes, "max_steps=9", resume="auto"), ranks=2, port=free_port())
    assert done.returncode == 0 and last_step(run) == 9, done.stderr


def test_a_slower_way_is_on_record(task, warm, tmp_path):
    """A profile that compiles, on a CPU, where attention cannot be: once for both ranks, and kept over a resume."""
    run, hardware = tmp_path / "run", json.loads(CPU_PROFILE.read_text(encoding="utf-8"))["_hardware"]
    profile = write_profile(tmp_path / "profile.json", _hardware={**hardware, "compile": True})
    first, rest = (["max_steps=2", *NO_EVALUATION], ["max_steps=3", "checkpoints.every_steps=1", *NO_EVALUATION])
    done = warm.finish(train_arguments(task, run, *first, ds=profile), ranks=2, port=free_port())
    told = "the training step could not be compiled and runs eagerly, several times slower"
    assert done.returncode == 0, done.stderr[-2000:]
    (fault,) = events(run, "fault")
    assert (fault["kind"], fault["name"], fault["step"], fault["ranks"]) == ("fallback", told, 0, [0, 1]), (
        "in the rehearsal"
    )
    end = done.stdout[done.stdout.index("done: 2 steps") :]
    assert fault["reason"] and "slower than it could be since step 0: " + told in end
    done = warm.finish(train_arguments(task, run, *rest, resume="auto"), ranks=1, port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    kept = json.loads((run / "summary.json").read_text())["fallbacks"]
    assert kept == [{key: fault[key] for key in ("step", "name", "reason", "ranks")}]
    page = write_report(run).read_text(encoding="utf-8")
    assert f"Since step 0: {told}" in page


def test_a_killed_rank_takes_the_other_down_in_seconds(task, warm, tmp_path):
    run, output = tmp_path / "run", tmp_path / "log"
    pids = warm.start(train_arguments(task, run, *NO_EVALUATION, ENDLESS), ranks=2, port=free_port(), output=output)
    wait_for(lambda: last_step(run), lambda: has_ended(pids) and output.read_text())
    killed = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    assert all(warm.wait(pid) for pid in pids)
    assert time.monotonic() - killed < 20
    assert "rank 1 died after step" in output.read_text()


def test_a_stop_in_the_first_evaluation_is_made_up_for(task, warm, tmp_path):
    """SIGTERM while the base model is measured; the resumed run measures it and ends like one never stopped."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    changes = ["evaluation.batch_clips=1", "evaluation.sample_clips=12", "max_steps=4"]
    done = warm.finish(train_arguments(task, whole, *changes), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    output = tmp_path / "log"
    pids = warm.start(train_arguments(task, run, *changes), ranks=2, port=free_port(), output=output)
    wait_for((run / "metrics.jsonl").is_file, lambda: has_ended(pids) and output.read_text())
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert [warm.wait(pid) for pid in pids] == [75, 75], output.read_text()
    assert not events(run, "train")
    done = warm.finish(train_arguments(task, run, *changes, resume="auto"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    for kind in ("eval", "train"):
        assert without_times(events(run, kind)) == without_times(events(whole, kind))


def test_a_stop_file_stops(task, warm, tmp_path):
    run, output = tmp_path / "run", tmp_path / "log"
    pids = warm.start(train_arguments(task, run, *NO_EVALUATION, ENDLESS), ranks=2, port=free_port(), output=output)
    wait_for(lambda: last_step(run), lambda: has_ended(pids) and output.read_text())
    (run / "STOP").touch()
    assert [warm.wait(pid) for pid in pids] == [75, 75], output.read_text()
    assert find_checkpoints(run / "checkpoints")


def test_a_stop_file_that_comes_while_the_ranks_start_counts_and_an_earlier_one_does_not(task, warm, tmp_path):
    run, output, changes = tmp_path / "run", tmp_path / "log", (*NO_EVALUATION, ENDLESS)
    pids = warm.start(train_arguments(task, run, *changes), ranks=2, port=free_port(), output=output)
    lock = run / "lock"
    wait_for(lambda: lock.is_file() and lock.read_text(), lambda: has_ended(pids) and output.read_text())
    time.sleep(0.1)
    (run / "STOP").touch()  # a model is still to be loaded, and the ranks are to meet
    assert [warm.wait(pid) for pid in pids] == [75, 75], output.read_text()
    last = f"max_steps={last_step(run) + 2}"
    done = warm.finish(train_arguments(task, run, *changes, last, resume="auto"), ranks=2, port=free_port())
    assert done.returncode == 0 and not (run / "STOP").exists(), done.stderr


def test_no_token_is_written_anywhere(task, warm, tmp_path):
    """Neither by a run with a tracker nor by one that fails: output, run directory and evidence of the crash."""
    marker = "s3cr3t" * 8
    variables = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"), marker)
    variables["WANDB_MODE"] = "offline"
    whole, failed = tmp_path / "whole", tmp_path / "failed"
    changes = ["logging.wandb=true", "max_steps=2", *NO_EVALUATION]
    done = warm.finish(train_arguments(task, whole, *changes), port=free_port(), variables=variables)
    changes = [overflowing(task, tmp_path / "base"), "faults.non_finite_patience=0", *NO_EVALUATION]
    crashed = warm.finish(train_arguments(task, failed, *changes), port=free_port(), variables=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wandb failed" not in done.stderr and list((whole / "wandb").iterdir())
    assert crashed.returncode == 6 and (failed / "crash").is_dir()
    for text in (done.stdout, done.stderr, crashed.stdout, crashed.stderr):
        assert marker not in text
    files = [path for folder in (whole, failed) for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "metrics.jsonl", "state.json", "error.txt"} <= {path.name for path in files}
    assert not [path for path in files if marker.encode() in path.read_bytes()]


def test_a_loader_that_is_stuck_in_a_read_ends_with_its_rank():
    script = (
        "import os, time; from hebrew_asr.training.loading import load_steps\n"
        "class Stuck:\n"
        "    def __getitem__(self, step):\n"
        "        print(os.getpid(), flush=True)\n"
        "        time.sleep(60)\n"
        "next(load_steps(Stuck(), 0, 1, workers=1, pin_memory=False))"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout is not None
    loader = psutil.Process(int(rank.stdout.readline()))
    loader.terminate()  # as everybody at a stop, and the rank still needs its data
    assert loader.is_running()
    rank.kill()
    rank.wait()
    loader.wait(timeout=10)


def test_a_loader_that_is_killed_costs_no_step(task, warm, tmp_path):
    """As by a kernel that is out of memory: both ranks save, one line says why, and neither calls the other dead."""
    run, output = tmp_path / "run", tmp_path / "log"
    arguments = train_arguments(task, run, *NO_EVALUATION, ENDLESS, "data.workers=1")
    pids = warm.start(arguments, ranks=2, port=free_port(), output=output)
    wait_for(lambda: last_step(run) > 1, lambda: has_ended(pids) and output.read_text())
    (loader,) = psutil.Process(pids[1]).children()
    loader.kill()
    assert [warm.wait(pid) for pid in pids] == [4, 4], output.read_text()
    (line,) = (line for line in output.read_text().splitlines() if "error" in line)
    step = find_checkpoints(run / "checkpoints")[-1].step
    assert line.startswith(f"error: rank 1: a loader process ended before its work was done (pid {loader.pid}, ")
    assert f"stopped after step {step}, state saved in {run}" in line and step == last_step(run)
    assert "Traceback" not in output.read_text()


def test_a_loader_that_is_still_ending_is_told_too():
    """A process that is killed closes its files, which is what the trainer notices, and may be waited for later."""
    script = (
        "import os, threading, time; from hebrew_asr.training.loading import load_steps\n"
        "class CutOff:\n"
        "    def __reduce__(self):\n"
        "        return exec, ('raise ConnectionResetError',)\n"
        "class Ending:\n"
        "    def end(self):\n"
        "        time.sleep(0.2)  # what it hands over is on its way\n"
        "        os.closerange(3, 1000)\n"
        "        time.sleep(0.5)\n"
        "        os._exit(9)\n"
        "    def __getitem__(self, step):\n"
        "        threading.Thread(target=self.end).start()\n"
        "        return CutOff()\n"
        "next(load_steps(Ending(), 0, 1, workers=1, pin_memory=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False, timeout=100
    )
    assert "EnvironmentProblem: a loader process ended before its work was done" in done.stderr, done.stderr
    assert "exit code 9" in done.stderr


@pytest.mark.parametrize("size", ["256k", "4k"])  # the first ends in a step, the other before any loader is there
def test_shared_memory_that_is_full_is_told(task, tmp_path, size):
    """As in a container, which has 64 MB of it: torch alone would say so in a thread, and wait for ever."""
    arguments = shlex.join(train_arguments(task, tmp_path / "run", *NO_EVALUATION, "data.workers=2", "max_steps=4"))
    small = f"mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{small}; exec {sys.executable} {TRAIN_FILE} {arguments}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("this user may not mount a small disk")
    assert done.returncode == 4, done.stderr
    assert re.search("error: (/dev/shm is full|loader processes cannot be started .*/dev/shm)", done.stderr)
    assert "--shm-size" in done.stderr and "data.workers=0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_temporary_folder_too_deep_for_sockets_is_told(task, tmp_path):
    """Loaders could not hand over their steps, which torch says in a thread, and the trainer would wait for ever."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    line = [sys.executable, str(TRAIN_FILE)]
    line += train_arguments(task, tmp_path / "run", *NO_EVALUATION, "data.workers=2", "max_steps=4")
    variables = {**environment(), "TMPDIR": str(deep)}
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 4 and "TMPDIR to a shorter one" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not [*deep.iterdir()]
