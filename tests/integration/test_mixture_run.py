"""A run over a mixture of data sets, one in files and one in a shard, here and at a URL: the same through a kill."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hebrew_asr.audio.source import Part
from hebrew_asr.corpus.preparation import shards
from hebrew_asr.data.manifest import index_manifest, read_manifest, write_manifest
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
    return folder


def learned(run: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"], row["sets"]) for row in events(run, "train")]


def test_a_mixture_is_learned_alike_anywhere_and_its_shares_are_told(task, warm, tmp_path):
    here, there, log = tmp_path / "here", tmp_path / "there", tmp_path / "here.log"
    assert warm.run(train_arguments(task, here, *MIXED), ranks=2, port=free_port(), output=log) == [0, 0]
    assert "an epoch is 25.0% filed (0.30 x), 75.0% packed (4.50 x)" in log.read_text()
    assert "an epoch is 62.5% filed (0.75 x), 37.5% packed (2.25 x)" in log.read_text()
    by_phase = [Counter(), Counter()]
    for row in events(here, "train"):
        by_phase[row["step"] > 3].update(row["sets"])
    assert by_phase == [{"filed": 6, "packed": 18}, {"filed": 15, "packed": 9}]
    with served(task / "data") as (address, _):
        elsewhere = train_arguments(task, there, *MIXED, f"data.folder={address}")
        variables = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        start = {"ranks": 1, "output": tmp_path / "log", "variables": variables}
        (pid,) = warm.start(elsewhere, port=free_port(), **start)
        wait_for(lambda: last_step(there) > 1, lambda: has_ended([pid]) and start["output"].read_text())
        os.kill(pid, signal.SIGKILL)
        warm.wait(pid)
        elsewhere = train_arguments(task, there, *MIXED, f"data.folder={address}", resume="auto")
        assert warm.run(elsewhere, port=free_port(), **start) == [0]
        told = start["output"].read_text()
    again = tmp_path / "again"
    assert warm.run(train_arguments(task, again, *MIXED), ranks=1, port=free_port(), output=log) == [0]
    assert learned(there) == learned(again) and len(learned(there)) == 6, told
    assert [row[0::3] for row in learned(here)] == [row[0::3] for row in learned(again)], "ranks change no share"
