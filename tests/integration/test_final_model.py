"""What a run leaves as ``final/``: the best of its models, whatever happens while it is chosen."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from hebrew_asr.checkpoints.models import model_of
from hebrew_asr.checkpoints.sealed import find_checkpoints
from hebrew_asr.commands.ours import files_below, is_of_demo
from hebrew_asr.inference.load import cutting_of, cutting_of_run
from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.report.gather import read_run
from hebrew_asr.report.page import write_report
from hebrew_asr.text.prompt import build_target
from tests.support.disks import fill, small_disk
from tests.support.tiny_task import (
    CPU_PROFILE,
    ROOT,
    events,
    final_weights,
    free_port,
    make_task,
    train_arguments,
    wait_for,
    write_profile,
)
from tests.support.warm import WarmStart, has_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

LAST, BEST, MEAN = "last (step 12)", "best (step 6)", "mean (steps 9, 12)"
COMPARING = f"comparing {LAST}, {BEST}, {MEAN}"
CHANGES = (
    "evaluation.choose_final=true",
    "checkpoints.every_steps=3",
    "evaluation.at_start=false",
    "phases.1.epochs=2",
    'phases.0.learning_rates={"projector":1e-2,"llm_top":1e-2,"head":1e-2}',
    'phases.1.learning_rates={"projector":1,"llm_top":1,"head":1,"audio_top":1}',
)


def task_of_one_sentence(folder: Path, eval_clips: int = 4) -> Path:
    task = make_task(folder, eval_clips=eval_clips)
    for name in ("train", "eval"):
        manifest = task / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        manifest.write_text("".join(json.dumps(row | {"text": build_target("שלום")}) + "\n" for row in rows))
    return task


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = next(one for one in find_checkpoints(run / "checkpoints") if one.step == step)
    return dict(model_of(run, [checkpoint])[0].named_parameters())


def final_is(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in final_weights(run).items())


def told_final(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())["final"]


@pytest.mark.parametrize("shards", ["ZeRO-2 in fp32", "ZeRO-3 in bf16"])
def test_the_final_model_is_the_best_one(warm, tmp_path, shards):
    """A run that learns its one sentence in the first phase and is ruined in the second; on two ranks, then on one.

    The best checkpoint is of the first phase, so what it had frozen comes from the base model.
    """
    task, run, profile = task_of_one_sentence(tmp_path / "task"), tmp_path / "run", CPU_PROFILE
    if shards == "ZeRO-3 in bf16":
        hardware, shipped = {"accelerator": "cpu", "num_ranks": 2}, ROOT / "ds_configs" / "a100x8-40gb-zero3.json"
        profile = write_profile(tmp_path / "zero3.json", of=shipped, _hardware=hardware)
    done = warm.finish(train_arguments(task, run, *CHANGES, ds=profile), ranks=2, port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    rates = {title: figures["wer"] for title, figures in summary["final"]["compared"].items()}
    assert summary["final"]["model"] == BEST and set(rates) == {LAST, BEST, MEAN}
    assert rates[BEST] < rates[LAST] == summary["full"]["wer"]
    assert f"{BEST} {rates[BEST]:.2%}" in done.stdout
    assert final_is(run, weights_of(run, 6))
    moved = shutil.copytree(run / "final", tmp_path / "elsewhere" / "final")
    assert cutting_of(moved) == cutting_of_run(run) != Cutting(), "it cuts recordings as it does beside its run"
    history = read_run(run)
    assert history.chosen is not None and history.chosen.wer == rates[BEST]
    assert history.samples[history.chosen.key] and history.evaluations[-1].split == "eval"
    assert BEST in write_report(run).read_text(encoding="utf-8")
    assert [name for name in files_below(run) if not is_of_demo(name)] == []

    # Its end comes again, and the best checkpoint is damaged since: the last step's model stays, and that is told.
    (run / "summary.json").unlink()
    (damaged,) = (run / "checkpoints" / "step-000006").glob("optimizer-rank00000*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    done = warm.finish(train_arguments(task, run, *CHANGES, ds=profile, resume="auto"), port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert told_final(run)["model"] == LAST
    (fault,) = [row for row in events(run, "fault") if row["kind"] == "final model"]
    assert damaged.name in fault["reasons"][0] and "final/ is that of the last step" in done.stdout
    assert final_is(run, weights_of(run, 12))
    assert read_run(run).chosen is None


@pytest.fixture(scope="module")
def trained(warm, tmp_path_factory) -> tuple[Path, Path]:
    """A task, and a run whose end is to come: all that it lacks is the choice. Choosing takes some seconds."""
    folder = tmp_path_factory.mktemp("ended")
    task, run = task_of_one_sentence(folder / "task", eval_clips=120), folder / "run"
    done = warm.finish(train_arguments(task, run, *CHANGES), port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert told_final(run)["model"] == BEST
    (run / "summary.json").unlink()
    shutil.rmtree(run / "final")
    return task, run


class Choosing:
    """A run that has come to its end again, at the moment when it begins to compare its models."""

    def __init__(self, warm: WarmStart, trained: tuple[Path, Path], run: Path):
        task, before = trained
        shutil.copytree(before, run, dirs_exist_ok=True)
        self.arguments, self.run = train_arguments(task, run, *CHANGES, resume="auto"), run
        self._warm, self._output = warm, run.parent.parent / "log"
        (self.pid,) = warm.start(self.arguments, port=free_port(), output=self._output)
        wait_for(lambda: COMPARING in self.said(), lambda: has_ended([self.pid]) and self.said())

    def said(self) -> str:
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    def ended(self) -> int:
        return self._warm.wait(self.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_while_models_are_compared_leaves_a_model_and_the_next_start_chooses(warm, trained, tmp_path, number):
    choosing = Choosing(warm, trained, tmp_path / "runs" / "run")
    os.kill(choosing.pid, number)
    assert choosing.ended() == (75 if number == signal.SIGTERM else -signal.SIGKILL), choosing.said()
    run = choosing.run
    assert final_is(run, weights_of(run, 12)) and not (run / "summary.json").exists()
    done = warm.finish(choosing.arguments, port=free_port())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert told_final(run)["model"] == BEST and final_is(run, weights_of(run, 6))
    assert not list(run.glob(".*final"))


def test_a_disk_that_fills_up_while_models_are_compared_costs_a_checkpoint(warm, trained, tmp_path):
    """The better model is in ``final/`` at the price of the oldest checkpoint; the last one stays."""
    with small_disk(tmp_path / "disk", "70m") as disk:
        choosing = Choosing(warm, trained, disk / "run")
        expected = weights_of(choosing.run, 6)
        fill(disk)
        assert choosing.ended() == 0, choosing.said()
        assert told_final(choosing.run)["model"] == BEST and final_is(choosing.run, expected)
        assert [one.step for one in find_checkpoints(choosing.run / "checkpoints")][-1] == 12
        assert "Traceback" not in choosing.said()


def test_a_better_model_that_cannot_be_written_leaves_the_last_one_and_is_told(warm, trained, tmp_path):
    choosing = Choosing(warm, trained, tmp_path / "runs" / "run")
    run = choosing.run
    with small_disk(run / ".tmp-final", "16k"):  # a folder that is there and cannot be removed
        assert choosing.ended() == 0, choosing.said()
        assert told_final(run)["model"] == LAST and final_is(run, weights_of(run, 12))
        (fault,) = [row for row in events(run, "fault") if row["kind"] == "final model"]
        assert f"{BEST} is better, but could not be written, so final/ is {LAST}" in fault["reasons"][0]
        assert "Traceback" not in choosing.said()
