"""A set in shards: the same bytes however it was made, the same sound as in files, opened by other people's tools."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from hebrew_asr.audio.frames import EncoderGeometry
from hebrew_asr.cli import main
from hebrew_asr.config.batching import Batching
from hebrew_asr.config.recipe import load_recipe
from hebrew_asr.corpus.prepare import is_prepared
from hebrew_asr.data.clip_audio import read_clip
from hebrew_asr.data.loader import StepDataset
from hebrew_asr.data.manifest import open_manifest, read_manifest
from hebrew_asr.errors import DataError
from tests.support import corpora
from tests.support.native import build
from tests.support.tiny_task import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "v5"
    rows = [
        corpora.crowd_row(
            f"S{i % 9}/e{i % 30}/{i}",
            i,
            content=corpora.encode(corpora.voice(i, 1.0 + i % 3, 16_000), 16_000, "flac"),
            text="שלום שלום שלום שלום לכולם" if i == 7 else None,  # odd: a clip to listen to in an audit
            duration_s=1.0 + i % 3,
            noisy=i % 17 == 0,
        )
        for i in range(120)
    ]
    corpora.write_crowd_shards(folder, rows, 3)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = ("sources.parquet.ROWS_PER_UNIT = 8", "corpus.preparation.shards.SHARD_BYTES = 1_000_000")
    return corpora.small_prepare(tmp_path_factory.mktemp("script"), *limits)


def start(script: Path, corpus: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(script), "--source", str(corpus), "--out", str(out), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def files(corpus: Path, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files") / "out"
    assert start(script, corpus, out, "--processes", "2").wait(120) == 0
    return out


@pytest.fixture(scope="module")
def shards(corpus: Path, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    assert start(script, corpus, out, "--store", "shards", "--processes", "1").wait(120) == 0
    return out


def test_nothing_but_shards_and_tables_is_left(shards):
    found = {path.relative_to(shards).as_posix() for path in shards.rglob("*") if path.is_file()}
    data = sorted(name for name in found if name.startswith("data/"))
    assert found - set(data) == {
        "_SUCCESS",
        "manifest.json",
        "dropped.jsonl",
        *(f"{side}.{kind}" for side in ("train", "eval") for kind in ("jsonl", "arrow")),
    }
    of = sum(name.startswith("data/train") for name in data)
    assert of > 2 and data[-1] == f"data/train-{of - 1:05d}-of-{of:05d}.parquet"
    assert set(data) < json.loads((shards / "manifest.json").read_text())["sha256"].keys()


def num_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def test_kills_and_process_counts_leave_no_trace(corpus, script, shards, tmp_path):
    """Killed while it converts, packs and writes: what is there in the end is the same to the byte."""
    whole, draw, out, kills = corpora.tree_of(shards), random.Random(1), tmp_path / "out", 0
    while not is_prepared(out):
        enough = num_files(out) + draw.randint(1, 8)  # not seconds: a fast machine would be done before
        running = start(script, corpus, out, "--store", "shards", "--processes", "2")
        while kills < 6 and running.poll() is None and num_files(out) < enough:
            time.sleep(0.01)
        if kills < 6 and running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            kills += 1
            time.sleep(0.2)
        running.wait(120)
    assert kills > 2
    assert corpora.tree_of(out) == whole


def test_the_sound_is_that_of_the_files(files, shards):
    for side in ("train", "eval"):
        alone, together = read_manifest(files / f"{side}.jsonl"), read_manifest(shards / f"{side}.jsonl")
        assert [replace(clip, audio="", offset_bytes=0, size_bytes=0) for clip in together] == [
            replace(clip, audio="") for clip in alone
        ]
        for one, other in zip(alone, together, strict=True):
            samples = read_clip(other)
            assert isinstance(samples, np.ndarray) and np.array_equal(read_clip(one), samples)
        by_text = [json.loads(line) for line in (shards / f"{side}.jsonl").read_text().splitlines()]
        (shards / f"{side}.arrow").rename(shards / "aside")
        assert read_manifest(shards / f"{side}.jsonl") == together, "the JSON lines say the same"
        (shards / "aside").rename(shards / f"{side}.arrow")
        assert {"offset_bytes", "size_bytes"} <= by_text[0].keys()


def test_any_step_is_the_same_to_the_bit(files, shards):
    recipe = load_recipe("round2", ["clips_per_step=8"])
    one, other = (
        StepDataset(
            open_manifest(folder / "train.jsonl"), Batching(8, 2, 1, 4), recipe, build()[1], EncoderGeometry(), 1
        )
        for folder in (files, shards)
    )
    for step in (7, 0, 23):
        pairs = zip(one[step].micro_batches, other[step].micro_batches, strict=True)
        assert all(mine.packed.waveform_S.equal(theirs.packed.waveform_S) for mine, theirs in pairs)
        assert one[step].micro_batches[0].packed.clip_ids == other[step].micro_batches[0].packed.clip_ids


def test_other_tools_open_it(files, shards, tmp_path):
    """``load_dataset`` of a folder, as the hub's viewer does it: splits, an audio column and its bytes."""
    program = """
import sys
from datasets import Audio, load_dataset
opened = load_dataset(sys.argv[1])
assert opened["train"].features["audio"] == Audio(16_000), opened["train"].features
row = opened["train"].cast_column("audio", Audio(decode=False))[5]
print(sorted(opened), opened["train"].num_rows, opened["eval"].num_rows, row["id"])
open(sys.argv[2], "wb").write(row["audio"]["bytes"])
"""
    command = [sys.executable, "-c", program, str(shards), str(tmp_path / "5.flac")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    train, evaluation = (read_manifest(files / f"{side}.jsonl") for side in ("train", "eval"))
    assert done.stdout.strip() == f"['eval', 'train'] {len(train)} {len(evaluation)} {train[5].id}"
    assert (tmp_path / "5.flac").read_bytes() == Path(train[5].audio).read_bytes()
    table = pyarrow.parquet.read_table(sorted(shards.glob("data/train*"))[0], page_checksum_verification=True)
    assert table["id"].to_pylist() == [clip.id for clip in train[: table.num_rows]]


def test_a_copy_that_was_broken_off_is_named(shards, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    assert main(["audit", str(copy)]) == 0, capsys.readouterr().out
    page = (copy / "audit.html").read_text()
    assert 'src="data:audio/flac;base64,' in page
    last = sorted(copy.glob("data/train*"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"clip \d+: .*{last.name} is not whole: clips lie beyond its end"):
        open_manifest(copy / "train.jsonl")
    last.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    assert main(["audit", str(copy)]) == 1
    assert f"data/{last.name}: was changed after prepare wrote it" in capsys.readouterr().out
    last.unlink()
    with pytest.raises(DataError, match="audio file not found"):
        open_manifest(copy / "train.jsonl")
