"""A run is one run: ranks started to train different things refuse to, and nothing else is resumed into it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hebrew_asr.checkpoints.models import kept_checkpoints, model_of
from tests.support.tiny_task import (
    NO_EVALUATION,
    ROOT,
    environment,
    events,
    free_port,
    lines_but_the_first,
    make_task,
    train_arguments,
    write_profile,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

FROZEN = "model.audio_tower.layers.0.fc1.weight"
"""Trains in no phase of the tiny task."""


def with_other_weight(base: Path, folder: Path) -> Path:
    """A copy of a model folder in which one element of a frozen weight is another."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights[FROZEN][0, 0] += 0.25
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_bare_ranks_that_train_different_things_leave_at_once(task, tmp_path):
    """As two nodes would whose checkouts, data, models and job scripts have come apart."""
    code = tmp_path / "checkout"
    shutil.copytree(ROOT / "hebrew_asr", code / "hebrew_asr")
    with (code / "hebrew_asr" / "audio" / "mel.py").open("a") as stream:
        stream.write("# changed\n")
    other = make_task(tmp_path / "other", train_clips=19)
    shutil.rmtree(other / "base")
    with_other_weight(task / "base", other / "base")
    profile = write_profile(tmp_path / "other.json", train_micro_batch_size_per_gpu=1)
    changes = (*NO_EVALUATION, "seed=7", "phases.0.learning_rates.head=1e-3")
    place = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    jobs = []
    for rank, (root, arguments) in enumerate(
        [
            (ROOT, train_arguments(task, tmp_path / "run", *NO_EVALUATION)),
            (code, train_arguments(other, tmp_path / "run", *changes, ds=profile)),
        ]
    ):
        own = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(root)}
        line = [sys.executable, str(root / "hebrew_asr" / "train.py"), *arguments]
        jobs.append(subprocess.Popen(line, env=own, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    try:
        told = [job.communicate(timeout=200)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [2, 2], told
    for text in told:
        line = next(line for line in text.splitlines() if line.startswith("error: the ranks were not started to train"))
        for part in ("code hebrew_asr: ", "data train.jsonl: ", "model weights: ", "recipe seed: 42 on rank 0, 7 on"):
            assert part in line, line
        assert "profile train_micro_batch_size_per_gpu: 64 on rank 0, 1 on rank 1" in line
        assert "recipe phases.0.learning_rates.head: 0.0001 on rank 0, 0.001 on rank 1" in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_ranks_whose_files_lie_elsewhere_train_together(task, warm, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(task, elsewhere)
    run, output = tmp_path / "run", tmp_path / "log"
    changes = (*NO_EVALUATION, "max_steps=1")
    of_ranks = [
        train_arguments(task, run, *changes),
        train_arguments(elsewhere, run, *changes, "data.allow_outside=true", "data.workers=1"),
    ]
    codes = warm.run(
        [json.dumps(arguments) for arguments in of_ranks],
        ranks=2,
        port=free_port(),
        output=output,
        program="tests.support.unlike_ranks",
    )
    assert codes == [0, 0], output.read_text()


@pytest.mark.parametrize("broken", [0, 1])
def test_what_one_rank_alone_finds_wrong_ends_all_of_them(task, warm, tmp_path, broken):
    """As on a node whose copy of the data is torn: nobody waits for the rank that cannot come."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(task, elsewhere)
    with (elsewhere / "data" / "train.jsonl").open("a") as stream:
        stream.write('{"audio": "clips/tor')
    run, output = tmp_path / "run", tmp_path / "log"
    of_ranks = [
        train_arguments(elsewhere if rank == broken else task, run, *NO_EVALUATION, "max_steps=1") for rank in range(3)
    ]
    started = time.monotonic()
    codes = warm.run(
        [json.dumps(arguments) for arguments in of_ranks],
        ranks=3,
        port=free_port(),
        output=output,
        program="tests.support.unlike_ranks",
    )
    assert codes == [3, 3, 3], output.read_text()
    assert time.monotonic() - started < 180, "not the 600 s that ranks wait for each other"
    (line,) = lines_but_the_first(output)
    assert line.startswith(f"error: {'rank 1: ' if broken else ''}manifest {elsewhere / 'data' / 'train.jsonl'}"), line
    assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module")
def begun(task, warm, tmp_path_factory) -> Path:
    """A run of two steps; each test resumes a copy."""
    run = tmp_path_factory.mktemp("begun") / "run"
    output = run.with_suffix(".log")
    codes = warm.run(train_arguments(task, run, *NO_EVALUATION, "max_steps=2"), output=output)
    assert codes == [0], output.read_text()
    return run


@pytest.fixture
def resume(begun, task, warm, tmp_path):
    """``resume(…)`` goes on with a copy of the run to step 3: its exit code, and the lines that it printed."""
    run = tmp_path / "run"
    shutil.copytree(begun, run)

    def go_on(*changes: str, of: Path = task) -> tuple[int, list[str]]:
        output = tmp_path / "log"
        output.unlink(missing_ok=True)
        arguments = train_arguments(of, run, *NO_EVALUATION, "max_steps=3", *changes, resume="auto")
        (code,) = warm.run(arguments, output=output)
        return code, lines_but_the_first(output)

    go_on.run = run
    return go_on


def averages_two(run: Path) -> bool:
    kept = kept_checkpoints(run)
    model_of(run, kept)
    return [checkpoint.step for checkpoint in kept] == [2, 3]


def test_what_does_not_decide_learning_may_change(resume, task, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(task, moved)
    code, lines = resume(
        f"data.folder={moved / 'base' / '..' / 'data'}",
        *("data.workers=1", "phases.0.title=Another title", "name=renamed", "checkpoints.keep_last=3"),
        *("logging.every_steps=3", "evaluation.batch_clips=1", "faults.max_unreadable_share=0.5"),
        of=moved,
    )
    assert code == 0, lines
    assert any("resuming from" in line for line in lines)
    assert [row["step"] for row in events(resume.run, "train")] == [1, 2, 3]
    facts = json.loads((resume.run / "run.json").read_text())
    values = json.loads((resume.run / "checkpoints" / "step-000003" / "state.json").read_text())
    assert facts["base_model"] == values["base_model"]
    assert facts["base_model"]["path"] == str(moved / "base")
    assert len(facts["code"]["hebrew_asr"]) == 32
    assert values["recipe"]["name"] == "renamed"
    assert averages_two(resume.run), "of one base model, wherever it lay"


def test_another_model_or_recipe_is_refused_by_what_differs(resume, task, tmp_path):
    before = {path: path.read_bytes() for path in resume.run.rglob("*") if path.is_file() and path.name != "lock"}
    other = with_other_weight(task / "base", tmp_path / "other")
    code, lines = resume(f"model.path={other}")
    told = [line for line in lines if line.startswith("error: ")]
    assert code == 5 and len(told) == 1, lines
    assert f"was trained on {task / 'base'}, and {other} has other weights" in told[0]
    code, lines = resume("optimizer.weight_decay=0.1", "phases.1.epochs=9")
    assert code == 5 and len(lines) == 1, lines
    assert "optimizer.weight_decay: 0.01 in the run, 0.1 now; phases.1.epochs: 3 in the run, 9 now" in lines[0]
    (resume.run / "recipe.json").unlink()
    code, lines = resume("seed=7")
    assert code == 5 and "seed: 42 in the run, 7 now" in lines[0], lines
    del before[resume.run / "recipe.json"]
    assert before == {p: p.read_bytes() for p in resume.run.rglob("*") if p.is_file() and p.name != "lock"}
    code, lines = resume()
    assert code == 0 and any("resuming from" in line for line in lines), lines


def test_a_checkpoint_that_does_not_know_its_base_model(resume, task, tmp_path):
    """Of an older version: the recipe's name alone, and no base model."""
    newest = resume.run / "checkpoints" / "step-000002"
    values = json.loads((newest / "state.json").read_text())
    values["recipe"] = values["recipe"]["name"]
    del values["base_model"]
    (newest / "state.json").write_text(json.dumps(values))
    seals = json.loads((newest / "COMPLETE.json").read_text())
    content = (newest / "state.json").read_bytes()
    seals["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (newest / "COMPLETE.json").write_text(json.dumps(seals))
    (newest / "eval.json").unlink()  # of this version too
    moved = tmp_path / "moved"
    moved.symlink_to(task)
    code, lines = resume(of=moved)
    assert code == 5 and f"model.path: {json.dumps(str(task / 'base'))} in the run" in lines[0], lines
    made_by = (resume.run / "recipe.json").read_bytes()
    (resume.run / "recipe.json").unlink()
    code, lines = resume()
    assert code == 5 and "has checkpoints and no recipe.json" in lines[0], lines
    (resume.run / "recipe.json").write_bytes(made_by)
    code, lines = resume()
    assert code == 0 and any("resuming from" in line for line in lines), lines
    assert any("| warning: " in line and "which base model it was trained on" in line for line in lines)
    assert averages_two(resume.run)
