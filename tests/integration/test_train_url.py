"""Training, measuring and auditing a set that lies at a URL, on a server that drops and stalls requests."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hebrew_asr.audio.source import Part
from hebrew_asr.cli import main
from hebrew_asr.corpus.preparation import shards
from hebrew_asr.data.clip_audio import read_ahead, read_clip
from hebrew_asr.data.manifest import index_manifest, open_manifest, read_manifest, write_manifest
from hebrew_asr.errors import EnvironmentProblem
from hebrew_asr.remote import cache, paths
from hebrew_asr.remote.cache import cache_folder, limit_cache, set_folder
from tests.support.lossy import served
from tests.support.tiny_task import NO_EVALUATION, events, free_port, last_step, make_task, train_arguments, wait_for
from tests.support.warm import has_ended

pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
pytestmark = pytest.mark.integration

BOUND_GIB = 300 * 1024 / (1 << 30)


def pack_set(files: Path, out: Path) -> Path:
    """The set of a folder of files, in shards of a quarter of a megabyte."""
    for side in ("train", "eval"):
        clips = read_manifest(files / f"{side}.jsonl")
        sounds = [Part(clip.audio, 0, Path(clip.audio).stat().st_size) for clip in clips]
        of_side = shards.shards_of(out, side, clips, sounds)
        packed = [clip for shard in of_side for clip in shards.packed_clips(shard, shards.pack(shard), out)]
        write_manifest(out / f"{side}.jsonl", packed)
        index_manifest(out / f"{side}.jsonl")
    return out


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("task"))
    before, shards.SHARD_BYTES = shards.SHARD_BYTES, 250_000
    pack_set(folder / "data", folder / "set")
    shards.SHARD_BYTES = before
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HEBREW_ASR_CACHE_GIB", "1")
    monkeypatch.setattr(paths, "PAUSE_S", 0.01)
    monkeypatch.setattr(cache, "SPARE", 0.0)  # so that these tests also pass on a disk that is nearly full
    return cache_folder()


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (folder / "sound").glob("*"))


def train_through_a_kill(warm, task: Path, run: Path, changes: tuple[str, ...], *, output: Path, variables) -> str:
    """Train on one rank, kill it after a checkpoint, and resume to the end; returns what both said."""
    start = {"ranks": 1, "output": output, "variables": variables}
    (pid,) = warm.start(train_arguments(task, run, *changes), port=free_port(), **start)
    wait_for(lambda: last_step(run) > 3, lambda: has_ended([pid]) and output.read_text())
    os.kill(pid, signal.SIGKILL)
    warm.wait(pid)
    told = output.read_text()
    assert warm.run(train_arguments(task, run, *changes, resume="auto"), port=free_port(), **start) == [0]
    return told + output.read_text()


def test_losses_from_shards_at_a_url_are_those_from_local_files_through_a_kill(task, warm, own_cache, tmp_path):
    changes = ("max_steps=6", "checkpoints.every_steps=2", "data.workers=1", *NO_EVALUATION)
    here, there = tmp_path / "here", tmp_path / "there"
    arguments = train_arguments(task, here, *changes)
    assert warm.run(arguments, ranks=1, port=free_port(), output=tmp_path / "here.log") == [0]
    with served(task / "set", stall_s=2.0) as (address, handler):
        elsewhere = (f"data.folder={address}", f"data.cache_gib={BOUND_GIB}", *changes)
        start = {"output": tmp_path / "log", "variables": {"XDG_CACHE_HOME": str(tmp_path / "cache")}}
        told = train_through_a_kill(warm, task, there, elsewhere, **start)
        assert handler.faults > 2 and told.count("reading it again") > 1
        assert kept_bytes(own_cache) <= BOUND_GIB * 2**30 < handler.sent_bytes
    losses = [[(row["step"], row["loss"], row["grad_norm"]) for row in events(run, "train")] for run in (here, there)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def same_sound(clips, sounds: list[np.ndarray]) -> bool:
    return all(np.array_equal(read_clip(clip), sound) for clip, sound in zip(clips, sounds, strict=True))


def test_what_is_kept_is_bounded_shared_and_of_the_set_as_it_is(task, own_cache, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(task / "set", copy)
    local = read_manifest(copy / "train.jsonl")
    sounds = [read_clip(clip) for clip in local]
    with served(copy, requests=100) as (address, handler):
        folder = set_folder(address)
        there = open_manifest(folder / "train.jsonl")
        assert [replace(clip, audio="") for clip in there] == [replace(clip, audio="") for clip in local]
        read_ahead(there)
        assert same_sound(there, sounds)
        count = handler.requests
        assert set_folder(address) == folder and same_sound(there, sounds)
        assert handler.requests == count, "the tables have not changed, and all of the sound is kept"
        damaged = next(path.with_suffix("") for path in (own_cache / "sound").glob("*.sums"))
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        assert same_sound(there, sounds) and count < handler.requests < 2 * count, "what was lost is read again"
        limit_cache(BOUND_GIB)
        (own_cache / "sound" / "lock").unlink()  # its count
        monkeypatch.setattr(cache, "IN_USE_S", 0.0)
        damaged.unlink()
        assert same_sound(there, sounds) and 0 < kept_bytes(own_cache) <= BOUND_GIB * 2**30, "the oldest have left"
        lines = (copy / "train.jsonl").read_text().splitlines()
        one = json.loads(lines[0])
        shard = copy / one["audio"]
        content = bytearray(shard.read_bytes())
        content[one["offset_bytes"] + 1000] ^= 1  # a sample
        shard.write_bytes(content)
        (copy / "train.jsonl").write_text("\n".join([json.dumps(one | {"group": "other"}), *lines[1:]]) + "\n")
        (copy / "train.arrow").unlink()
        (changed,) = open_manifest(set_folder(address) / "train.jsonl")[:1]
        assert np.array_equal(read_clip(changed), read_clip(read_manifest(copy / "train.jsonl")[0]))
        assert not np.array_equal(read_clip(changed), sounds[0])


def test_commands_take_a_url_and_name_what_is_wrong_with_it(task, own_cache, tmp_path, capsys, monkeypatch):
    with served(task / "set", requests=100) as (address, _):
        assert main(["audit", address, "--out", str(tmp_path), "--processes", "1"]) in (0, 1)
        assert f"{len(read_manifest(task / 'set' / 'train.jsonl'))} clips" in (tmp_path / "audit.html").read_text()
        assert not json.loads((tmp_path / "audit.json").read_text())["problem_counts"]["audio"]
        assert main(["plan", "--ds", "a100x8", "--data", address]) == 0
        for command in (["audit", f"{address}/none"], ["audit", address.replace("//", "//user:secret@")]):
            assert main(command) == 2
            told = capsys.readouterr().err
            assert address.partition("//")[2] in told and "secret" not in told and "Traceback" not in told
    clip = open_manifest(set_folder(address, ask=False) / "eval.jsonl")[0]
    assert main(["audit", address]) == 4 and "8 tries failed" in capsys.readouterr().err
    assert isinstance(read_clip(clip), np.ndarray), "kept since the audit"
    shutil.rmtree(own_cache / "sound")
    with pytest.raises(EnvironmentProblem, match="cannot be read, 8 tries failed"):
        read_clip(clip)  # not a fault of the clip, which would be left out


def test_a_nearly_full_disk_is_left_alone_and_that_is_told(task, own_cache, caplog, monkeypatch):
    monkeypatch.setattr(cache, "SPARE", 1.0)
    with served(task / "set", requests=100) as (address, handler):
        clip = open_manifest(set_folder(address) / "eval.jsonl")[0]
        count = handler.requests
        assert np.array_equal(read_clip(clip), read_clip(clip)) and handler.requests == count + 2
    assert kept_bytes(own_cache) < 2 * cache._BLOCK_BYTES, "no more than its count"
    assert [record.message for record in caplog.records if "of its disk" in record.message] == [
        f"what is read from URLs is not kept in {own_cache / 'sound'}: less than 100% of its disk is free"
    ]
