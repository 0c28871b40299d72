"""Runs on real disks that fill up: training goes on, and what is said of the state that is saved is so."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hebrew_asr.checkpoints.models import model_of
from hebrew_asr.checkpoints.sealed import ranked_by_wer
from hebrew_asr.checkpoints.store import find_checkpoints
from hebrew_asr.config.recipe import Model
from hebrew_asr.inference.export import save_native
from hebrew_asr.model.load import load_model, load_tokenizer
from tests.support.disks import fill, small_disk
from tests.support.tiny_task import (
    ENDLESS,
    NO_EVALUATION,
    events,
    free_port,
    last_step,
    make_task,
    train_arguments,
    wait_for,
)
from tests.support.warm import WarmStart, has_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def disk(tmp_path):
    """66 MiB, of which 64 are kept free while training goes on: room for a few checkpoints of a third of a MiB."""
    with small_disk(tmp_path / "disk", "66m") as folder:
        yield folder


def test_a_full_disk_costs_checkpoints_not_the_run(task, warm, disk):
    run = disk / "run"
    changes = ["checkpoints.every_steps=1", "checkpoints.keep_last=100", "checkpoints.background=false", *NO_EVALUATION]
    done = warm.finish(train_arguments(task, run, *changes), port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "disk is full; dropping the oldest checkpoint" in done.stderr
    assert len(events(run, "train")) == 15
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept[-1] == "step-000015"
    assert len(kept) < 15
    assert all((run / "checkpoints" / name / "COMPLETE.json").is_file() for name in kept)


def stop_when_full(warm: WarmStart, arguments: list[str], run: Path, output: Path) -> tuple[int, int, Path]:
    """Fill the disk once there are checkpoints, train on and stop: exit code, the newest step before, ballast."""
    (pid,) = warm.start(arguments, port=free_port(), output=output)
    enough = lambda: len(find_checkpoints(run / "checkpoints")) and last_step(run) > 6  # noqa: E731
    wait_for(enough, lambda: has_ended([pid]) and output.read_text())
    ballast = fill(run.parent)
    newest = find_checkpoints(run / "checkpoints")[-1].step
    time.sleep(2)
    os.kill(pid, signal.SIGTERM)
    return warm.wait(pid), newest, ballast


def test_a_stop_without_room_says_what_is_lost_and_the_next_start_goes_on(task, warm, disk, tmp_path):
    """The only checkpoint is not given up for the new one. No record and no step is missing in the end."""
    run, output = disk / "run", tmp_path / "log"
    changes = [
        "checkpoints.every_steps=2",
        "checkpoints.keep_last=1",
        "checkpoints.keep_best=0",
        ENDLESS,
        *NO_EVALUATION,
    ]
    code, newest, ballast = stop_when_full(warm, train_arguments(task, run, *changes), run, output)
    told = output.read_text()
    assert code == 4, told
    assert "state saved" not in told and "Traceback" not in told
    assert told.count("metrics.jsonl") and "records wait" in told.replace("they wait", "records wait")
    (error,) = [line for line in told.splitlines() if line.startswith("error:")]
    saved = find_checkpoints(run / "checkpoints")[-1]
    saved.verify()
    stopped = int(error.split("stopped after step ")[1].split(",")[0])
    assert saved.step >= newest
    assert f"the newest checkpoint is of step {saved.step} and lacks {stopped - saved.step} step" in error
    ballast.unlink()
    changes.append(f"max_steps={saved.step + 3}")
    done = warm.finish(train_arguments(task, run, *changes, resume="auto"), port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in events(run, "train")] == list(range(1, saved.step + 4))


def test_a_stop_takes_the_place_of_the_oldest_checkpoint(task, warm, disk, tmp_path):
    run, output = disk / "run", tmp_path / "log"
    changes = [
        "checkpoints.every_steps=3",
        "checkpoints.keep_last=2",
        "checkpoints.keep_best=0",
        ENDLESS,
        *NO_EVALUATION,
    ]
    code, _, _ = stop_when_full(warm, train_arguments(task, run, *changes), run, output)
    told = output.read_text()
    assert code == 75, told
    newest = find_checkpoints(run / "checkpoints")[-1]
    newest.verify()
    assert f"stopped after step {newest.step}, state saved" in told


def test_a_model_that_finds_no_room_is_written_by_the_next_start(task, warm, tmp_path):
    """The trained weights are in the last checkpoint, and nothing looks finished meanwhile."""
    run = tmp_path / "run"
    arguments = train_arguments(task, run, "max_steps=3", *NO_EVALUATION)
    with small_disk(run / ".tmp-final", "32k"):
        done = warm.finish(arguments, port=free_port())
        assert done.returncode == 4, done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "all 3 steps are trained, but the model could not be written" in error and "--resume auto" in error
        assert "Traceback" not in done.stderr
        assert not (run / "final").exists() and not (run / "summary.json").exists()
        assert [checkpoint.step for checkpoint in find_checkpoints(run / "checkpoints")] == [3]
    done = warm.finish(train_arguments(task, run, "max_steps=3", *NO_EVALUATION, resume="auto"), port=free_port())
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    assert len(events(run, "train")) == 3
    made = [*(run / "final").iterdir(), *(run / "checkpoints").glob("*/*")]
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in made}
    assert len(set(modes.values())) == 1 and {"model.safetensors", "optimizer-rank00000.safetensors"} <= set(modes)
    assert not list(run.glob(".*final"))


def test_a_model_is_whole_or_the_disk_is_named_wherever_it_ends(task, tmp_path):
    """The libraries that write its files have errors of their own for a full disk."""
    path = str(task / "base")
    asr, tokenizer, failures = load_model(Model(path)), load_tokenizer(path), 0
    for kib in range(4, 400, 8):
        with small_disk(tmp_path / "disk", f"{kib}k") as disk:
            try:
                save_native(disk / "final", asr, tokenizer)
            except OSError as error:
                assert error.errno == errno.ENOSPC and not list(disk.iterdir())
                failures += 1
            else:
                break
    assert 10 < failures < 49, "it fitted in the end"


def test_evaluations_are_of_the_same_clips_and_belong_to_checkpoints(warm, tmp_path):
    """An eval clip cannot be read; the checkpoint of a step is there before its evaluation is."""
    task = make_task(tmp_path / "task", eval_clips=6)
    victim = task / "data" / "clips" / "eval0.wav"
    victim.write_bytes(victim.read_bytes()[:30])
    run = tmp_path / "run"
    changes = ("checkpoints.every_steps=3", "evaluation.every_steps=2", "evaluation.sample_clips=3", "max_steps=6")
    done = warm.finish(train_arguments(task, run, *changes), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr
    evaluations = events(run, "eval")
    assert [(row["step"], row["split"], row["sample_clips"]) for row in evaluations] == [
        *((step, "sample", 3) for step in (0, 2)),
        (3, "eval", 3),
        (4, "sample", 3),
        (6, "eval", 3),
    ]
    assert all(row["unreadable"] == 1 for row in evaluations if row["split"] == "eval")
    faults = events(run, "fault")
    assert {(row["kind"], row["split"]) for row in faults} >= {("unreadable", "eval")}
    assert all("eval0" in row["reasons"][0] for row in faults)
    summary = json.loads((run / "summary.json").read_text())
    rates = [row["sample_wer"] for row in evaluations]
    assert (summary["wer_first"], summary["wer_final"], summary["wer_best"]) == (rates[0], rates[-1], min(rates))
    assert summary["full"]["wer"] == evaluations[-1]["wer"] and summary["full"]["clips"] == 6
    found = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(run / "checkpoints")}
    assert {step: checkpoint.values["wer"] for step, checkpoint in found.items()} == {3: rates[2], 6: rates[4]}
    states = {step: json.loads((checkpoint.path / "state.json").read_text()) for step, checkpoint in found.items()}
    assert {step: state["state"]["evaluated_step"] for step, state in states.items()} == {3: 2, 6: 4}, "saved before"
    assert {step: checkpoint.values["state"]["evaluated_step"] for step, checkpoint in found.items()} == {3: 3, 6: 6}
    asr, tokenizer = model_of(run, [found[6]])
    save_native(tmp_path / "model", asr, tokenizer)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", run / "final"))
    assert weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in weights)
    assert ranked_by_wer(list(found.values()))[-1][0].step in found
