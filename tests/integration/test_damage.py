"""Run directories that are damaged, incomplete or not shared: one line, never a start over, nothing deleted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from hebrew_asr.checkpoints.store import find_checkpoints
from tests.support import apart_worker
from tests.support.disks import remount, small_disk
from tests.support.tiny_task import NO_EVALUATION, events, free_port, train_arguments

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
KEPT = ("checkpoints.every_steps=1", "checkpoints.keep_last=3")
OPTIMIZER = "optimizer-rank00001.safetensors"


@pytest.fixture(scope="module")
def four_steps(task, warm, tmp_path_factory) -> Path:
    """Checkpoints of steps 2, 3 and 4, written by two ranks."""
    run = tmp_path_factory.mktemp("four") / "run"
    done = warm.finish(train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=4"), ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr[-2000:]
    return run


@pytest.fixture
def run(four_steps, tmp_path) -> Path:
    return Path(shutil.copytree(four_steps, tmp_path / "run"))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_damaged_ones_are_passed_over_and_kept(task, warm, run):
    """The newest has a wrong bit in the second rank's file, the one before an empty state, and recipe.json is gone."""
    newest, before = run / "checkpoints" / "step-000004", run / "checkpoints" / "step-000003"
    flip_a_bit(newest / OPTIMIZER)
    (before / "state.json").write_bytes(b"")
    (run / "recipe.json").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + '{"event": "train", "step": 2, "שלום'.encode()[:-1])
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "warning: going on from step 2" in done.stdout
    (fault,) = events(run, "fault")
    assert (fault["kind"], fault["step"]) == ("damaged checkpoint", 2)
    assert OPTIMIZER in fault["reasons"][0] and "state.json is not JSON" in fault["reasons"][1]
    assert [row["step"] for row in events(run, "train")] == [1, 2, 3, 4, 5]
    assert (newest.with_name("step-000004.damaged") / OPTIMIZER).is_file()
    assert (before.with_name("step-000003.damaged") / OPTIMIZER).is_file()
    assert [checkpoint.step for checkpoint in find_checkpoints(run / "checkpoints")] == [3, 4, 5]


@pytest.mark.parametrize("name", ["COMPLETE.json", "state.json", OPTIMIZER])
@pytest.mark.parametrize("contents", [[b"", b'{"files": {"', b"\xd7"], [None, None, b""]], ids=["torn", "missing"])
def test_a_run_without_a_whole_checkpoint_does_not_start_over(task, warm, run, name, contents):
    """One file of each checkpoint is empty, torn, torn inside a letter, or missing (None)."""
    for folder, content in zip(sorted((run / "checkpoints").iterdir()), contents, strict=True):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    before = sorted((path, path.stat().st_size) for path in run.rglob("*") if path.is_file())
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, port=free_port())
    assert done.returncode == 5, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "no checkpoint in" in error and "is whole" in error
    assert len(re.findall(rf"step-00000\d[^;]*{re.escape(name)}", error)) == len(contents), error
    assert "Traceback" not in done.stderr
    assert sorted((path, path.stat().st_size) for path in run.rglob("*") if path.is_file()) == before


def test_json_that_nests_without_end_is_damage_like_any_other(task, warm, run):
    """Python gives up on it with an error of its own. So does a link that leads to itself."""
    newest = run / "checkpoints" / "step-000004"
    for file in (newest / "COMPLETE.json", *(run / name for name in ("recipe.json", "run.json", "summary.json"))):
        file.write_bytes(b"[" * 200_000)
    (run / "max_micro_batch.json").write_bytes(b'{"a":' * 200_000)
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(b"[" * 200_000 + b"\n" + metrics.read_bytes())
    eval_of_another = newest.with_name("step-000003") / "eval.json"
    eval_of_another.unlink(missing_ok=True)
    eval_of_another.symlink_to(eval_of_another.name)
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "warning: going on from step 3" in done.stdout and "(it nests too deep); kept as" in done.stdout
    assert [row["step"] for row in events(run, "train")] == [1, 2, 3, 4, 5]


def test_a_renamed_checkpoint_is_passed_over(task, warm, run):
    (run / "checkpoints" / "step-000004").rename(run / "checkpoints" / "step-000009")
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 0, done.stderr
    assert "going on from step 3" in done.stdout and "holds the state of step 4; was it renamed?" in done.stdout
    assert (run / "checkpoints" / "step-000009.damaged" / OPTIMIZER).is_file()
    assert [row["step"] for row in events(run, "train")] == [1, 2, 3, 4, 5]


def test_a_run_whose_checkpoints_were_taken_away_does_not_start_over(task, warm, run):
    (run / "checkpoints").rename(run.with_name("elsewhere"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, port=free_port())
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert f"tells of checkpoints, and {run / 'checkpoints'} holds none: bring one back" in done.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_place_that_the_disk_refuses_is_told_on_every_rank(task, warm, tmp_path):
    """As one that this user may not look into is, too."""
    done = warm.finish(train_arguments(task, tmp_path / ("x" * 300), "max_steps=1"), ranks=2, port=free_port())
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert "error: File name too long: " in done.stderr and "give another place" in done.stderr


def test_records_that_cannot_be_opened_are_told_on_every_rank(task, warm, run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("metrics.jsonl")
    arguments = train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto")
    done = warm.finish(arguments, ranks=2, port=free_port())
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert f"error: run directory {run} cannot be written: Too many levels of symbolic links" in done.stderr


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "STOP", "checkpoints", "final"])
def test_a_folder_in_the_place_of_a_file_is_told_and_the_other_way_around(task, warm, run, name):
    place = run / name
    is_folder = place.is_dir()
    shutil.rmtree(place) if is_folder else place.unlink(missing_ok=True)
    place.write_text("mine") if is_folder else place.mkdir()
    done = warm.finish(
        train_arguments(task, run, *NO_EVALUATION, *KEPT, "max_steps=5", resume="auto"), port=free_port()
    )
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{run} holds {name}, in which a run keeps something else" in error and "Traceback" not in done.stderr
    assert place.is_file() == is_folder


def test_a_run_directory_that_ranks_do_not_share_is_refused(task, warm, tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    arguments = ["train", str(folder), *train_arguments(task, folder / "run", *NO_EVALUATION, "max_steps=2")]
    done = warm.finish(arguments, ranks=2, port=free_port(), program=apart_worker.__name__)
    assert done.returncode == 4, done.stderr
    assert "rank 1 does not see" in done.stderr and str(folder / "run") in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((folder / "run").glob(".seen*"))


def test_a_rank_that_cannot_write_is_told_and_waited_for_no_longer(warm, tmp_path):
    done = warm.finish(["store", str(tmp_path)], ranks=2, port=free_port(), program=apart_worker.__name__)
    assert done.returncode == 0, done.stderr
    said, sealed = json.loads(done.stdout.splitlines()[-1])
    assert said[0] is None and said[3] is None and sealed == 4
    assert "rank 1" in said[1] and "Read-only file system" in said[1]
    assert "rank 1" in said[2] and "No such file or directory" in said[2]
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "checkpoints")] == [1, 4]


@pytest.mark.parametrize("option", ["ro", "size=200k"])
def test_a_disk_that_cannot_take_the_run_is_refused_at_the_start(task, warm, tmp_path, option):
    with small_disk(tmp_path / "disk", "200k") as disk:
        if option == "ro":
            remount(disk, "size=10m")
            remount(disk, "ro")
        done = warm.finish(train_arguments(task, disk / "run", *NO_EVALUATION, "max_steps=2"), port=free_port())
        assert done.returncode == 4, done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert str(disk / "run") in error
        assert ("read-only" in error.lower()) if option == "ro" else ("no disk space for one checkpoint" in error)
        assert "Traceback" not in done.stderr
