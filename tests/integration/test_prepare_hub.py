"""The hub: pinned downloads, gated sets, and one clear line when it cannot be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import corpora
from tests.support.hub import COMMIT, TOKEN, hub

pytestmark = pytest.mark.integration


def prepare(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    command = [sys.executable, "-m", "hebrew_asr.cli", "prepare", "--out", str(folder / "out"), "--processes", "1"]
    return subprocess.run(
        [*command, *arguments],
        env={**inherited, "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = corpora.write_crowd(tmp_path_factory.mktemp("hub") / "v5", 24)
    # The second one has the audio of a training clip.
    test = [corpora.crowd_row("Source1/ep1/9", 900), corpora.crowd_row("Held/ep/1", 3, text="אחר", duration_s=1.5)]
    corpora.write_shard(folder, test, corpora.CROWD_TRANSCRIBE, "test-00000-of-00001")
    return folder


def test_pinned_download_with_test_shards_held_out(corpus, tmp_path):
    with hub({"ivrit-ai/crowd-transcribe-v5": corpus}) as endpoint:
        done = prepare(tmp_path, "--source", "ivrit-ai/crowd-transcribe-v5", "--exclude", HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"][0] | {"clips": 0, "hours": 0, "bytes": 0} == {
        "name": "crowd-transcribe-v5",
        "revision": COMMIT,
        "shards": 3,
        "bytes": 0,
        "clips": 0,
        "hours": 0,
        "recordings": 26,
    }
    reasons = {row["id"]: row.get("detail") for row in corpora.lines_of(tmp_path / "out" / "dropped.jsonl")}
    assert reasons["crowd-transcribe-v5/Source3/ep3/3"] == "same audio"
    assert reasons["crowd-transcribe-v5/Source1/ep1/1"] == "same source"  # v5's test split is of whole sources
    assert manifest["dropped"]["public test set"]["clips"] == 2
    first = corpora.tree_of(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "online")
    again = ("--source", "ivrit-ai/crowd-transcribe-v5", "--exclude")
    done = prepare(tmp_path, *again, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert corpora.tree_of(tmp_path / "out") == first and "offline: the 3 parquet files" in done.stdout
    (lost,) = (tmp_path / "hf").rglob("snapshots/*/data/train-00001-of-00002.parquet")
    # The cache's snapshot is a folder of links, and a source as it stands.
    done = prepare(tmp_path / "local", "--source", str(lost.parents[1]), "--exclude")
    assert done.returncode == 0 and "source crowd-transcribe-v5 at sha256:" in done.stdout, done.stderr
    lost.unlink()
    (tmp_path / "out").rename(tmp_path / "offline")
    done = prepare(tmp_path, *again, HF_HUB_OFFLINE="1")
    assert done.returncode == 4 and "lacks 1 of its files, such as data/train-00001-of-00002" in done.stderr


def test_leaderboard_sets_are_excluded_by_default(corpus, tmp_path):
    long_talk = " ".join(corpora.sentence(seed) for seed in (40, 6, 41))
    row = {"uuid": "talk", "audio": {"bytes": corpora.speech(99), "path": ""}, "orig_text": "", "text": long_talk}
    for name in ("eval-d1", "eval-whatsapp"):
        corpora.write_shard(tmp_path / name, [row], corpora.WHISPER_TRAINING, "test-00000-of-00001")
    repos = {"ivrit-ai/crowd-transcribe-v5": corpus}
    repos |= {f"ivrit-ai/{name}": tmp_path / name for name in ("eval-d1", "eval-whatsapp")}
    with hub(repos) as endpoint:
        done = prepare(tmp_path, "--source", "ivrit-ai/crowd-transcribe-v5", HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["exclude"] == ["eval-d1", "eval-whatsapp"]
    dropped = corpora.lines_of(tmp_path / "out" / "dropped.jsonl")
    details = {row["id"]: row.get("detail") for row in dropped}
    assert details["crowd-transcribe-v5/Source2/ep6/6"] == "same sentence"  # said within the talk


def test_gated_set_says_where_to_go(corpus, tmp_path):
    repo = "ivrit-ai/crowd-transcribe-v5"
    with hub({repo: corpus}, gated=(repo,)) as endpoint:
        refused = prepare(tmp_path, "--source", repo, "--exclude", HF_ENDPOINT=endpoint)
        assert refused.returncode == 4
        assert refused.stderr.count("\n") == 1
        assert f"https://huggingface.co/datasets/{repo}" in refused.stderr and "HF_TOKEN" in refused.stderr
        allowed = prepare(tmp_path, "--source", repo, "--exclude", HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN)
        assert allowed.returncode == 0, allowed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--source", "ivrit-ai/no-such-set"), 3, "not on the hub, or private"),
        (("--source", "ivrit-ai/crowd-transcribe-v5@gone"), 3, "no such revision"),
        (("--source", "ivrit-ai/empty"), 3, "no parquet files"),
    ],
)
def test_wrong_datasets_are_named(corpus, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    with hub({"ivrit-ai/crowd-transcribe-v5": corpus, "ivrit-ai/empty": tmp_path / "empty"}) as endpoint:
        done = prepare(tmp_path, *arguments, HF_ENDPOINT=endpoint)
    assert done.returncode == code, done.stderr
    assert message in done.stderr and arguments[1].partition("@")[0] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_offline_is_one_line_and_leaves_nothing(tmp_path):
    done = prepare(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "ivrit-ai/crowd-transcribe-v5: cannot reach the Hugging Face hub" in done.stderr
    assert not (tmp_path / "out").exists()
