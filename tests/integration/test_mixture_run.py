"""A run over a mixture of data sets, one in files and one in a shard, together or apart: the same through a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hebrew_asr.audio.source import Part
from hebrew_asr.cli import main
from hebrew_asr.corpus.preparation import shards
from hebrew_asr.data.manifest import index_manifest, open_manifest, read_manifest, write_manifest
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.text.wer import count_errors
from tests.support.lossy import served
from tests.support.tiny_task import NO_EVALUATION, events, free_port, last_step, make_task, train_arguments, wait_for
from tests.support.warm import has_ended

pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
pytestmark = pytest.mark.integration

MIXED = (
    'data.weights={"B": {"filed": 1, "packed": 3}}',
    'data.temperature={"A": 3}',
    "phases.0.epochs=1",
    "max_steps=6",
    "checkpoints.every_steps=1",
    "data.workers=1",
    *NO_EVALUATION,
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 24 clips 20 are files, and 4 lie in a shard."""
    folder = make_task(tmp_path_factory.mktemp("task"), train_clips=24)
    clips = read_manifest(folder / "data" / "train.jsonl")
    packed, filed = list(clips[::6]), [clip for number, clip in enumerate(clips) if number % 6]
    sounds = [Part(clip.audio, 0, Path(clip.audio).stat().st_size) for clip in packed]
    (shard,) = shards.shards_of(folder / "data", "train", packed, sounds)
    placed = list(shards.packed_clips(shard, shards.pack(shard), folder / "data"))
    named = {"filed": filed, "packed": placed}
    write_manifest(
        folder / "data" / "train.jsonl",
        [replace(clip, id=f"{name}/{clip.id}") for name, own in named.items() for clip in own],
    )
    index_manifest(folder / "data" / "train.jsonl")
    evaluated = read_manifest(folder / "data" / "eval.jsonl")
    names = ("filed" if number % 3 else "packed" for number in range(len(evaluated)))
    pairs = zip(evaluated, names, strict=True)
    write_manifest(folder / "data" / "eval.jsonl", [replace(clip, id=f"{name}/{clip.id}") for clip, name in pairs])
    return folder


@pytest.fixture(scope="module")
def alone(task, warm, tmp_path_factory) -> Path:
    """A run of one rank, on both sets in one folder, without a kill."""
    run = tmp_path_factory.mktemp("alone")
    assert warm.run(train_arguments(task, run / "run", *MIXED), ranks=1, port=free_port(), output=run / "log") == [0]
    return run / "run"


def through_a_kill(task: Path, run: Path, warm, change: str, variables: dict[str, str]) -> str:
    """Train on one rank, which is killed in the middle of the first epoch, after some clips came twice; its words."""
    start = {"ranks": 1, "output": run.with_suffix(".log"), "variables": variables}
    (pid,) = warm.start(train_arguments(task, run, *MIXED, change), port=free_port(), **start)
    wait_for(lambda: last_step(run) > 1, lambda: has_ended([pid]) and start["output"].read_text())
    os.kill(pid, signal.SIGKILL)
    warm.wait(pid)
    assert warm.run(train_arguments(task, run, *MIXED, change, resume="auto"), port=free_port(), **start) == [0]
    return start["output"].read_text()


def learned(run: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"], row["sets"]) for row in events(run, "train")]


def test_a_mixture_is_learned_alike_anywhere_and_its_shares_are_told(task, alone, warm, tmp_path):
    here, there, log = tmp_path / "here", tmp_path / "there", tmp_path / "here.log"
    arguments = train_arguments(task, here, *MIXED, "evaluation.sample_clips=3")
    assert warm.run(arguments, ranks=2, port=free_port(), output=log) == [0, 0]
    (measured,) = events(here, "eval")
    assert set(measured["wer_by_set"]) == {"filed", "packed"}
    counted = {}
    for row in map(json.loads, (here / "samples" / "step-000006-sample.jsonl").open(encoding="utf-8")):
        pairs = counted.setdefault(row["id"].partition("/")[0], ([], []))
        pairs[0].append(row["reference"])
        pairs[1].append(row["hypothesis"])
    assert measured["wer_by_set"] == {name: count_errors(*pairs).wer for name, pairs in counted.items()}
    assert "; WER by data set: filed " in log.read_text()
    assert "an epoch is 25.0% filed (0.30 x), 75.0% packed (4.50 x)" in log.read_text()
    assert "an epoch is 62.5% filed (0.75 x), 37.5% packed (2.25 x)" in log.read_text()
    by_phase = [Counter(), Counter()]
    for row in events(here, "train"):
        by_phase[row["step"] > 3].update(row["sets"])
    assert by_phase == [{"filed": 6, "packed": 18}, {"filed": 15, "packed": 9}]
    with served(task / "data") as (address, _):
        told = through_a_kill(task, there, warm, f"data.folder={address}", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert learned(there) == learned(alone) and len(learned(there)) == 6, told
    assert [row[0::3] for row in learned(here)] == [row[0::3] for row in learned(alone)], "ranks change no share"


def test_sets_that_were_prepared_apart_are_learned_as_one(task, alone, warm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name in ("filed", "packed"):
        shutil.copytree(task / "data", tmp_path / name)
        (tmp_path / name / "train.arrow").unlink()
        lines = (tmp_path / name / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        own = [line for line in lines if json.loads(line)["id"].startswith(name)]
        (tmp_path / name / "train.jsonl").write_text("".join(own), encoding="utf-8")
    (tmp_path / "packed" / "eval.jsonl").unlink()
    shutil.rmtree(tmp_path / "packed" / "clips")
    both, run = tmp_path / "both", tmp_path / "run"
    with served(tmp_path / "packed") as (address, _):
        words = ["join", str(tmp_path / "filed"), address, "--out", str(both), "--own-groups"]
        assert main(words) == 0, capsys.readouterr().err
        told = through_a_kill(task, run, warm, f"data.folder={both}", cache)
        assert learned(run) == learned(alone) and len(learned(run)) == 6, told
        data = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
        assert [one["place"] for one in data["sets"]] == [str(tmp_path / "filed"), address]
        for place, trained in ((one["place"], one["sides"]["train"]) for one in data["sets"]):
            assert trained["fingerprint"] == open_manifest(set_folder(place) / "train.jsonl").fingerprint
            assert f"({place}): {trained['clips']} of train" in told
        last = (tmp_path / "packed" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:-1]
        (tmp_path / "packed" / "train.jsonl").write_text("".join(last), encoding="utf-8")
        again = train_arguments(task, run, *MIXED, f"data.folder={both}", "max_steps=8", resume="auto")
        log = tmp_path / "refused"
        assert warm.run(again, ranks=1, port=free_port(), output=log, variables=cache) == [3]
        assert f"{address} is not what was joined into {both}" in log.read_text()
        shutil.rmtree(both)
        assert main(words) == 0
        assert warm.run(again, ranks=1, port=free_port(), output=log, variables=cache) == [5]
        assert "the training manifest has changed" in log.read_text(), "another set"
