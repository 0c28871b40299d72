"""Whole runs of ``prepare``: what is in the folder, that it is the same folder every time, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from hebrew_asr.audio.decode import decode
from hebrew_asr.corpus import prepare as module
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.prepare import ensure_prepared, is_prepared, prepare
from hebrew_asr.data.manifest import read_manifest
from hebrew_asr.errors import DataError, EnvironmentProblem, UsageError
from tests.support import corpora

pytestmark = pytest.mark.integration
REAL = Path(__file__).parents[3] / "shared" / "real_hebrew"


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean rows of a few sources, and one row of every fault."""
    folder = corpora.write_crowd(tmp_path_factory.mktemp("corpora") / "v5", 40)
    text = corpora.sentence(1)
    faults = [
        corpora.crowd_row("Source0/ep0/0", 0, text=corpora.sentence(500), duration_s=1.5, retake=True),
        corpora.crowd_row("New/ep/1", 4, text=text, duration_s=2.0),  # the audio of row 4 under another uuid
        corpora.crowd_row("New/ep/2", 601, skipped=True, noisy=True),
        corpora.crowd_row("New/ep/3", 602, text=""),
        corpora.crowd_row("New/ep/4", 603, text="only english"),
        corpora.crowd_row("New/ep/5", 604, content=b"\xff\xfb\x90\x00 no mp3"),
        corpora.crowd_row("New/ep/6", 605, duration_s=0.3, text="כן"),
        corpora.crowd_row("New/ep/7", 606, text="שָׁלוֹם\u200f לְכֻלָּם, בָּרוּךְ\u200e הַבָּא"),
        corpora.crowd_row("Mindset/ep/8", 607),
    ]
    corpora.write_shard(folder, faults, corpora.CROWD_TRANSCRIBE, "train-00002-of-00003")
    return folder


@pytest.fixture(scope="module")
def recital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "recital"
    rows = [
        corpora.recital_row(
            f"session{i}",
            700 + i,
            corpora.timed(
                *((s * 3.0, s * 3.0 + 2.8, corpora.sentence(50 * i + s, 4)) for s in range(6)), dangling_s=18.1
            ),
            24.0,
        )
        for i in range(4)
    ]
    corpora.write_shard(folder, rows, corpora.RECITAL)
    return folder


@pytest.fixture(scope="module")
def prepared(crowd: Path, recital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(PrepareOptions(source=(str(crowd), str(recital)), out=out, processes=2))
    return out


def test_schema_and_audio(prepared):
    lines = [line for name in ("train", "eval") for line in corpora.lines_of(prepared / f"{name}.jsonl")]
    written = "".join((prepared / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "eval"))
    assert "שלום לכלם, ברוך הבא" in written  # readable, not \\u05e9
    for line in lines:
        assert line["text"].startswith("language Hebrew<asr_text>")
        info = soundfile.info(prepared / line["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.duration == pytest.approx(line["duration_s"], abs=1e-4)
    clips = read_manifest(prepared / "train.jsonl") + read_manifest(prepared / "eval.jsonl")
    assert len({clip.id for clip in clips}) == len(clips)
    assert len({clip.audio for clip in clips}) == len(clips)
    on_disk = {str(path) for path in (prepared / "clips").rglob("*.flac")}
    assert on_disk == {clip.audio for clip in clips}


def test_every_fault_is_listed_with_its_reason(prepared):
    got = {row["id"]: row["reason"] for row in corpora.lines_of(prepared / "dropped.jsonl")}
    assert got == {
        "v5/Source0/ep0/0": "transcribed twice",
        "v5/New/ep/1": "duplicate audio",
        "v5/New/ep/2": "flagged skipped",
        "v5/New/ep/3": "no text",
        "v5/New/ep/4": "no Hebrew letter",
        "v5/New/ep/5": "undecodable audio",
        "v5/New/ep/6": "too short",
        "v5/Mindset/ep/8": "public test set",
    }
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert sum(tally["clips"] for tally in manifest["dropped"].values()) == 8


def test_recital_is_cut_before_the_unheard_end(prepared):
    clips = [line for name in ("train", "eval") for line in corpora.lines_of(prepared / f"{name}.jsonl")]
    cuts = [clip for clip in clips if clip["id"].startswith("recital/00000-000001#")]
    assert [clip["id"][-3:] for clip in cuts] == ["#00", "#01"]
    words = " ".join(corpora.sentence(50 + s, 4) for s in range(6))
    assert " ".join(clip["text"].partition("<asr_text>")[2] for clip in cuts) == words
    assert sum(clip["duration_s"] for clip in cuts) <= 18.1
    assert {clip["group"] for clip in cuts} == {"session1"}


def test_manifest_says_what_was_done(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["split"]["method"] == "leak-free" and not manifest["split"]["leaky"]
    assert not any(manifest["split"]["keys_in_set_and_public_tests"].values())
    assert manifest["train"]["clips"] == len(corpora.lines_of(prepared / "train.jsonl"))
    assert [source["name"] for source in manifest["sources"]] == ["v5", "recital"]
    assert manifest["versions"]["normaliser"] and str(prepared) not in json.dumps(manifest)


def test_other_process_counts_give_the_same_bytes(prepared, crowd, recital, tmp_path):
    prepare(PrepareOptions(source=(str(crowd), str(recital)), out=tmp_path / "out", processes=1))
    assert corpora.tree_of(tmp_path / "out") == corpora.tree_of(prepared)


def test_a_finished_folder_is_left_alone(prepared, crowd, recital):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()}
    options = PrepareOptions(source=(str(crowd), str(recital)), out=prepared)
    assert prepare(options)["train"]["clips"] > 0
    with pytest.raises(UsageError, match=r"seed was 42, now 7"):
        prepare(dataclasses.replace(options, seed=7))
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()}


def test_wav_is_what_the_official_script_reads(crowd, tmp_path, monkeypatch):
    prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "out", audio="wav", processes=1))
    monkeypatch.chdir("/")  # its paths are opened as they stand
    for line in corpora.lines_of(tmp_path / "out" / "train.jsonl"):
        with Path(line["audio"]).open("rb") as stream:
            info = soundfile.info(io.BytesIO(stream.read()))
        assert (info.format, info.samplerate, info.channels, info.subtype) == ("WAV", 16_000, 1, "PCM_16")
        assert line["text"].split("<asr_text>")[0] == "language Hebrew"
    assert read_manifest(tmp_path / "out" / "eval.jsonl")


def test_flac_and_wav_hold_the_same_samples(prepared, crowd, recital, tmp_path):
    prepare(PrepareOptions(source=(str(crowd), str(recital)), out=tmp_path / "out", audio="wav", processes=1))
    wav = {clip.id: clip for clip in read_manifest(tmp_path / "out" / "train.jsonl")}
    flac = {clip.id: clip for clip in read_manifest(prepared / "train.jsonl")}
    assert wav.keys() == flac.keys()
    for name in list(wav)[::7]:
        assert (decode(wav[name].audio) == decode(flac[name].audio)).all()


def test_random_split_is_labeled(crowd, tmp_path, capsys):
    prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "out", split="random", processes=1))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["split"]["leaky"] and manifest["split"]["keys_in_train_and_eval"]["source"] > 0
    assert "LEAKY" in capsys.readouterr().out


def test_a_source_that_fails_stops_the_job_by_name(crowd, tmp_path):
    broken = tmp_path / "broken"
    (broken / "data").mkdir(parents=True)
    whole = (crowd / "data" / "train-00000-of-00002.parquet").read_bytes()
    (broken / "data" / "train-0.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-0\.parquet"):
        prepare(PrepareOptions(source=(str(crowd), str(broken)), out=tmp_path / "out", processes=1))
    assert not is_prepared(tmp_path / "out") and not (tmp_path / "out" / "train.jsonl").exists()


def test_damage_inside_a_shard_stops_the_job_too(crowd, tmp_path):
    damaged = tmp_path / "damaged"
    shard = corpora.write_crowd(damaged, 20, shards=1) / "data" / "train-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[4:40] = b"\x55" * 36  # the first page header
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"source damaged: cannot read .*train-00000-of-00001\.parquet"):
        prepare(PrepareOptions(source=(str(damaged),), out=tmp_path / "out", processes=1))


def test_only_test_shards_is_an_error(tmp_path):
    corpora.write_shard(
        tmp_path / "s", [corpora.crowd_row("a/b/1", 1)], corpora.CROWD_TRANSCRIBE, "test-00000-of-00001"
    )
    with pytest.raises(DataError, match="only test or validation data"):
        prepare(PrepareOptions(source=(str(tmp_path / "s"),), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_strangers_files_are_never_touched(crowd, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_impossible_places_are_one_line(crowd, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="cannot write to /proc/out"):
        prepare(PrepareOptions(source=(str(crowd),), out=Path("/proc/out")))


def test_a_source_that_gave_nothing_leaves_no_trace(crowd, tmp_path):
    empty = tmp_path / "empty"
    corpora.write_shard(empty, [], corpora.CROWD_TRANSCRIBE)
    with pytest.raises(DataError, match="the sources are empty"):
        prepare(PrepareOptions(source=(str(empty),), out=tmp_path / "out"))
    prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "out"))  # the corrected command may follow at once


def test_two_sources_of_one_name_are_refused(crowd, tmp_path):
    with pytest.raises(UsageError, match="both named 'v5'"):
        prepare(PrepareOptions(source=(str(crowd), str(crowd)), out=tmp_path / "out"))
    with pytest.raises(UsageError, match=r"eval-d1 is test data \(--exclude\)"):
        prepare(PrepareOptions(source=("ivrit-ai/eval-d1",), out=tmp_path / "out"))


def test_too_small_a_disk_is_refused_before_anything_is_written(crowd, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000}))
    with pytest.raises(EnvironmentProblem, match=r"about \d+\.\d MiB are needed .* 0\.1 MiB are free"):
        prepare(PrepareOptions(source=(str(crowd),), out=tmp_path / "out"))
    assert not (tmp_path / "out" / "clips").exists()


def test_sources_that_change_midway_are_noticed(tmp_path, monkeypatch):
    corpora.write_crowd(tmp_path / "s", 20)
    options = PrepareOptions(source=(str(tmp_path / "s"),), out=tmp_path / "out", processes=1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(options)
    corpora.write_crowd(tmp_path / "s", 24)
    with pytest.raises(DataError, match="source s changed since"):
        prepare(options)


def test_ensure_prepared(prepared, tmp_path):
    assert ensure_prepared(prepared, PrepareOptions(seed=99)) == prepared
    (tmp_path / "train.jsonl").write_text("of another making")
    assert ensure_prepared(tmp_path) == tmp_path  # no hub is asked


_RANK = """
import sys
from pathlib import Path
from hebrew_asr.corpus.prepare import ensure_prepared
from hebrew_asr.corpus.preparation.options import PrepareOptions
if __name__ == "__main__":
    ensure_prepared(sys.argv[1], PrepareOptions(source=(sys.argv[2],), processes=1))
    print("lines", len(Path(sys.argv[1], "train.jsonl").read_text().splitlines()))
"""


def test_ranks_wait_for_the_one_that_prepares_even_when_it_is_killed(crowd, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(_RANK)

    def rank() -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path / "out"), str(crowd)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = rank()
    while not (tmp_path / "out" / ".work" / "job.json").exists():
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish before the others come
    others = [rank(), rank()]
    assert all("waiting for it" in (other.stderr or io.StringIO()).readline() for other in others)
    assert all(other.poll() is None for other in others)
    first.kill()
    answers = [other.communicate(timeout=100)[0] for other in others]
    first.communicate()
    lines = len((tmp_path / "out" / "train.jsonl").read_text().splitlines())
    assert [other.returncode for other in others] == [0, 0]
    assert all(f"lines {lines}" in answer for answer in answers)


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not beside the checkout")
def test_real_recordings(tmp_path):
    manifest = prepare(PrepareOptions(source=(str(REAL),), out=tmp_path / "out", processes=1))
    assert (manifest["train"]["clips"], manifest["eval"]["clips"], manifest["dropped"]) == (9, 1, {})
    texts = "".join(clip.transcript for clip in read_manifest(tmp_path / "out" / "train.jsonl"))
    assert not any("\u0591" <= character <= "\u05c7" for character in texts)
