"""Nothing of the user's is removed or overwritten: commands touch what they made themselves, and refuse the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hebrew_asr.cli import main
from hebrew_asr.commands.ours import DEMO_MARK, claim_demo_folder
from hebrew_asr.demo.synthesis import synthesize_corpus
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.check import check
from tests.support.report_run import make_run

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "ds_configs" / "cpu.json"
SYNTHETIC = {"data": None}
RUN = (
    *("recipe.json", "deepspeed.json", "run.json", "summary.json", "metrics.jsonl", "report.html", "STOP", "lock"),
    *("base/config.json", "base/model.safetensors", "final/tokenizer.json", "final/chat_template.jinja"),
    *("data/train.jsonl", "samples/step-000003-eval.jsonl", "crash/rank0/error.txt"),
    *("checkpoints/step-000500/optimizer-rank00001.safetensors", "checkpoints/.tmp-step-000600/state.json"),
    *("prepared/_SUCCESS", "prepared/train.jsonl", "prepared/clips/own/00000/000007-02.flac", "prepared/.work/lock"),
    *("prepared/.work/parts/own/00000-0000000.jsonl", ".metrics.jsonl.71.tmp", "samples/.step-000003-eval.jsonl.8.tmp"),
    *("wandb/offline-run-20261126_061646-a1b2c3d4/run-a1b2c3d4.wandb", "wandb/debug-internal.log"),
    "tensorboard/events.out.tfevents.1795721600.host",
)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recordings(folder: Path, tone_hz: float = 440.0) -> Path:
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", 0.1 * np.sin(np.arange(16_000) * tone_hz / 2546), 16_000)
    (folder / "a.txt").write_text("שלום עולם", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "foreign",
    [
        "mine.wav",
        "prepared/clips/own/00000/interview.flac",
        "prepared/clips/000001.flac",
        "data/interview.wav",
        "final/notes.txt",
        "checkpoints/step-000500/thesis.docx",
        "samples/step-notes.jsonl",
        "crash/photo.jpg",
        ".hidden",
        "recordings/a/b/c.wav",
        "base/model.safetensors/inside",
    ],
)
def test_a_demo_run_with_anything_else_in_it_stays(foreign, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    fill(folder, *(name for name in RUN if not foreign.startswith(f"{name}/")), foreign)
    (folder / DEMO_MARK).write_text(json.dumps(SYNTHETIC))
    before = contents(tmp_path)
    assert main(["demo", "--out", "run", "--fresh"]) == 2
    told = capsys.readouterr().err
    assert foreign in told and told.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mark", [None, "", "{", "[]", '{"made": "elsewhere"}', b"\xff\xfe"])
def test_a_folder_that_the_demo_did_not_mark_stays(mark, tmp_path, capsys):
    folder = recordings(tmp_path / "recordings")
    fill(folder, "summary.json", "metrics.jsonl")
    if mark is not None:
        (folder / DEMO_MARK).write_bytes(mark if isinstance(mark, bytes) else mark.encode())
    before = contents(tmp_path)
    for options in (["--fresh"], []):
        assert main(["demo", "--out", str(folder), *options]) == 2
        assert "is not a run of the demo" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_file_and_links_stay(tmp_path):
    mine = recordings(tmp_path / "mine")
    with pytest.raises(UsageError, match="not a run of the demo"):
        claim_demo_folder(mine / "a.wav", SYNTHETIC, fresh=True)
    for link in ("final", "clips", "base"):
        folder = tmp_path / f"run-{link}"
        claim_demo_folder(folder, SYNTHETIC, fresh=False)
        (folder / link).symlink_to(mine)
        with pytest.raises(UsageError, match=f"{link}, which the demo did not write"):
            claim_demo_folder(folder, SYNTHETIC, fresh=True)
    assert set(contents(mine)) == {"a.wav", "a.txt"}


def test_a_run_of_the_demo_is_removed(tmp_path):
    folder = tmp_path / "run"
    claim_demo_folder(folder, SYNTHETIC, fresh=True)
    fill(folder, *RUN)
    claim_demo_folder(folder, SYNTHETIC, fresh=False)
    assert len(contents(folder)) == len(RUN) + 1
    claim_demo_folder(folder, {"data": "elsewhere"}, fresh=True)
    assert list(contents(folder)) == [DEMO_MARK]
    assert json.loads((folder / DEMO_MARK).read_text()) == {"data": "elsewhere"}


def test_a_run_of_the_demo_that_is_in_training_stays(tmp_path):
    fill(tmp_path / "out", *RUN)
    claimed = json.dumps(SYNTHETIC)
    (tmp_path / "out" / DEMO_MARK).write_text(claimed)
    before = contents(tmp_path / "out")
    take = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX)"
    hold = f"{take}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out" / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == b"\n"
        with pytest.raises(UsageError, match="is in use by another process"):
            claim_demo_folder(tmp_path / "out", SYNTHETIC, fresh=True)
        assert contents(tmp_path / "out") == before
        trainer.kill()


def test_a_finished_run_is_not_shown_for_other_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, other, same_size = (recordings(tmp_path / name, hz) for name, hz in (("own", 440), ("other", 440), ("s", 880)))
    (other / "a.txt").write_text("ילדה כותבת", encoding="utf-8")
    shown = []
    monkeypatch.setattr("hebrew_asr.commands.demo._table", lambda folder, **_: shown.append(folder))
    monkeypatch.setattr("hebrew_asr.report.page.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr("hebrew_asr.commands.demo._hear_some", lambda _: None)
    monkeypatch.setattr("hebrew_asr.commands.demo._own_data", lambda *_: pytest.fail("it would prepare the data"))
    with pytest.raises(pytest.fail.Exception):
        main(["demo", "--data", "own"])  # as far as the preparation: the folder is claimed
    fill(tmp_path / "demo-run-own", "summary.json")
    assert main(["demo", "--data", "own"]) == 0 and shown
    capsys.readouterr()
    for options, code, told in (
        (["--data", "other"], 2, f"holds a run of the demo on {own}"),
        (["--data", "s"], 2, f"holds a run of the demo on {own}"),
        (["--data", "nowhere"], 3, "--data nowhere: no such file or folder"),
        (["--out", "demo-run-own"], 2, f"holds a run of the demo on {own}"),
        (["--data", "demo-run-own", "--fresh"], 2, "lie in each other"),
        (["--data", "own", "--out", "own/run", "--fresh"], 2, "lie in each other"),
    ):
        assert main(["demo", *options]) == code
        assert told in capsys.readouterr().err
    assert len(shown) == 1 and not (own / "run").exists()
    shutil.move(own, tmp_path / "moved")
    assert main(["demo", "--data", "moved"]) == 0, "the same recordings in another place"
    assert same_size.exists() and len(shown) == 2


def test_what_could_not_be_prepared_can_be_mended(tmp_path):
    claim_demo_folder(tmp_path / "run", {"data": "own", "revision": "1"}, fresh=False)
    (tmp_path / "run" / "prepared").mkdir()
    claim_demo_folder(tmp_path / "run", {"data": "own", "revision": "2"}, fresh=False)
    assert json.loads((tmp_path / "run" / DEMO_MARK).read_text())["revision"] == "2"


def test_synthetic_speech_is_not_put_among_other_files(tmp_path):
    fill(tmp_path, "train.jsonl", "clips/mine.wav")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="of another making"):
        synthesize_corpus(tmp_path, train_clips=2, eval_clips=1, seed=0, processes=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("theirs", [".work/build.ninja", ".work/parts/notes.txt", ".work/lock", "clips/mine.wav"])
def test_another_programs_work_folder_is_not_taken_for_ours(theirs, tmp_path, capsys):
    own, out = recordings(tmp_path / "own"), tmp_path / "out"
    fill(out, theirs, "clips/mine.wav", "train.jsonl")
    before = contents(out)
    for source in (own, tmp_path / "nowhere"):
        assert main(["prepare", "--source", str(source), "--out", str(out)]) == 2
    assert contents(out) == before and "not made by prepare" in capsys.readouterr().err


def test_preparation_removes_only_its_own_clips(tmp_path):
    """Begun, its folder may get files of the user's, which a failure and a finish leave where they are."""
    own, out = recordings(tmp_path / "own"), tmp_path / "out"
    fill(out, "clips/own/00000/000009.flac", ".train.jsonl.9.tmp", ".work/job.json")
    mine = ("clips/mine.wav", "clips/own/00000/interview.flac", "clips/own/000001.flac", "notes.txt", ".x.tmp")
    fill(out, *mine)
    (tmp_path / "empty").mkdir()
    for source, code in ((tmp_path / "empty", 3), (own, 0)):
        assert main(["prepare", "--source", str(source), "--out", str(out), "--eval-fraction", "0"]) == code
        assert set(mine) <= contents(out).keys() and "clips/own/00000/000009.flac" not in contents(out)
        fill(out, ".work/job.json", "clips/own/00000/000009.flac")
    assert contents(out)["clips/own/00000/interview.flac"] == b"content of clips/own/00000/interview.flac"


@pytest.mark.parametrize(
    "theirs",
    [
        *("final/tenth take.wav", "metrics.jsonl", "report.html", "samples/step-0-sample.jsonl"),
        *("config.json", "train.jsonl", "step-000500/state.json"),  # a model, a set, a run's checkpoints
    ],
)
def test_training_does_not_move_into_a_folder_of_others(theirs, tmp_path):
    fill(tmp_path / "mine", theirs)
    before = contents(tmp_path)
    for resume in ("never", "auto"):
        arguments = TrainArguments(
            str(PROFILE), set=["data.prepare=false"], run_dir=str(tmp_path / "mine"), resume=resume
        )
        with pytest.raises(UsageError, match=f"holds {theirs.split('/')[0]} and no recipe.json"):
            check(arguments)
    with pytest.raises(UsageError, match="is no folder: give --run another name"):
        check(TrainArguments(str(PROFILE), run_dir=str(next((tmp_path / "mine").rglob("*.*")))))
    assert contents(tmp_path) == before


def test_pages_and_figures_overwrite_only_their_like(tmp_path, capsys):
    run = make_run(tmp_path)
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == main(["report", str(run), "--out", str(page)]) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--out", "/proc/page.html"]) == 4
    assert capsys.readouterr().err.startswith("error: cannot make the report /proc/page.html: ")
    fill(tmp_path / "mine", "talk.wav", "audit.html", "figures.json")
    (tmp_path / "mine" / "report.html").mkdir()
    for command in (
        ["report", str(run), "--out", str(tmp_path / "mine" / "talk.wav")],
        ["report", str(run), "--out", str(run / "metrics.jsonl")],
        ["report", str(run), "--out", str(tmp_path / "mine" / "report.html")],
        ["report", str(run), "--out", "/dev/null"],
        ["audit", str(run), "--out", str(tmp_path / "mine")],
        ["bench", "--ds", "ds_configs/cpu.json", "--out", str(tmp_path / "mine" / "figures.json")],
    ):
        before = contents(tmp_path)
        capsys.readouterr()
        assert main(command) == 2
        assert "it stays as it is" in capsys.readouterr().err
        assert contents(tmp_path) == before


@pytest.fixture
def asked(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command beside sound, and a model that nobody can finish reading. ``there`` is empty."""
    for name in ("there", "silent", "model"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    recordings(tmp_path / "own")
    row = {"audio": "own/a.wav", "text": "שלום", "id": "1", "duration_s": 1.0, "group": "1"}
    (tmp_path / "eval.jsonl").write_text(json.dumps(row))

    def start(line: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        begin = [sys.executable, "-m", "hebrew_asr", *line.split()]
        return subprocess.Popen(begin, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("prepare --source nowhere --out there/new/deep", 2),
        ("prepare --source silent --out there/new/deep", 3),
        ("prepare --source nowhere --out there", 2),
        ("eval --model nowhere --data eval.jsonl --out there/new", 2),
    ],
)
def test_a_command_that_is_refused_leaves_no_folder_and_removes_none(line, code, asked, tmp_path):
    process = asked(line)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code and told.startswith("error: "), told
    assert (tmp_path / "there").is_dir() and not any((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("transcribe --model model own/a.wav", signal.SIGINT),
        ("eval --model model --data eval.jsonl", signal.SIGTERM),
    ],
)
def test_a_command_that_is_ended_while_its_model_loads_leaves_no_folder(line, number, asked, tmp_path):
    process, out = asked(f"{line} --out there/new/deep"), tmp_path / "there" / "new" / "deep"
    while not out.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, told
    assert not any((tmp_path / "there").iterdir())


def test_a_misspelled_set_is_not_taken_for_the_place_of_the_recipes_corpora(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for _ in range(2):
        with pytest.raises(DataError, match="--data nowhere: no set is there; hebrew-asr prepare "):
            check(TrainArguments(ds="cpu", data="nowhere"), 2)
        assert not list(tmp_path.glob("nowhere/*"))
        (tmp_path / "nowhere").mkdir(exist_ok=True)
