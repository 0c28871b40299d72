"""``prepare`` from an object store that drops and stalls requests, and training from one: the bits of a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.test_prepare_url import SCRIPT
from tests.integration.test_train_url import pack_set, train_through_a_kill
from tests.support import corpora
from tests.support.object_store import SECRET, object_store
from tests.support.tiny_task import NO_EVALUATION, ROOT, events, free_port, make_task, train_arguments

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (find_spec("s3fs") and find_spec("moto")), reason="needs pip install 'hebrew-asr[remote]' 'moto[server]'"
    ),
]


def test_what_is_prepared_is_the_same(tmp_path):
    corpora.write_crowd(tmp_path / "there" / "v5", 96, shards=8, group=2)
    (tmp_path / "script.py").write_text(SCRIPT)

    def prepared(source: str, out: Path, **variables: str) -> str:
        line = [sys.executable, str(tmp_path / "script.py"), "--processes", "2", "--source", source, "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    prepared(str(tmp_path / "there" / "v5"), tmp_path / "here")
    with object_store(tmp_path / "there") as store:
        told = prepared(f"{store.url}/v5", tmp_path / "out", **store.variables)
        assert store.proxy.dropped > 2 and store.proxy.dropped / store.proxy.requests > 0.04
    assert "no answer in 2 s; reading it again" in told and SECRET not in told
    assert corpora.tree_of(tmp_path / "out") == corpora.tree_of(tmp_path / "here")


def test_what_is_learned_is_the_same_through_a_kill(warm, tmp_path, monkeypatch):
    task = make_task(tmp_path / "task")
    monkeypatch.setattr("hebrew_asr.corpus.preparation.shards.SHARD_BYTES", 250_000)
    pack_set(task / "data", tmp_path / "there" / "set")
    changes = ("max_steps=8", "checkpoints.every_steps=2", "data.workers=1", *NO_EVALUATION)
    here, there = tmp_path / "here", tmp_path / "run"
    arguments = train_arguments(task, here, *changes)  # from files
    assert warm.run(arguments, ranks=1, port=free_port(), output=tmp_path / "here.log") == [0]
    with object_store(tmp_path / "there", stall_s=2.0) as store:
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HEBREW_ASR_CACHE_GIB": "1"}
        start = {"output": tmp_path / "log", "variables": {**cache, **store.variables}}
        elsewhere = (f"data.folder={store.url}/set", "data.cache_gib=0", *changes)
        told = train_through_a_kill(warm, task, there, elsewhere, **start)
        assert store.proxy.dropped > 2 and store.proxy.dropped / store.proxy.requests > 0.04
    losses = [[(row["step"], row["loss"], row["grad_norm"]) for row in events(run, "train")] for run in (here, there)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    kept = told + "".join(path.read_text(errors="replace") for path in there.glob("*.json*"))
    assert SECRET not in kept
