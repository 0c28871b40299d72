"""The manifest: official schema in and out; what is wrong is told with its line, and nothing is half-written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from hebrew_asr.data.manifest import Clip, read_manifest, write_manifest
from hebrew_asr.errors import DataError
from hebrew_asr.text.prompt import build_target


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(8000, np.int16), 16_000)
    return tmp_path


def row(**changes) -> dict:
    return {"audio": "a.wav", "text": build_target("שלום"), "id": "1", "duration_s": 0.5, "group": "g", **changes}


def write(folder, *rows) -> str:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_round_trip_keeps_paths_relative_and_text_readable(folder):
    clips = [Clip(str(folder / f"{n}.wav"), build_target("שלום"), n, 0.5, "g") for n in ("a", "b")]
    write_manifest(folder / "train.jsonl", clips)
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    assert '"audio": "a.wav"' in text
    assert "שלום" in text
    assert read_manifest(folder / "train.jsonl") == clips


def test_official_manifest_without_our_fields_is_read(folder):
    (clip,) = read_manifest(write(folder, {"audio": "b.wav", "text": build_target("כן")}))
    assert clip.duration_s == pytest.approx(0.5)
    assert clip.transcript == "כן"
    assert clip.id


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(audio="none.wav")], r"line 1: audio file not found.*none\.wav"),
        ([row(), row(id="2", text="language Hebrew<asr_text> ")], "line 2: the transcript is empty"),
        ([row(audio="../outside.wav")], "leaves the manifest's folder"),
        ([row(), row()], "line 2: id '1' occurs twice"),
        ([row(duration_s=-1)], "duration_s is -1"),
        ([{"text": "x"}], "no audio"),
        ([[1, 2]], "not a JSON object"),
        ([], "holds no clips"),
    ],
)
def test_problems_are_told_with_their_line(folder, rows, told):
    with pytest.raises(DataError, match=told):
        read_manifest(write(folder, *rows))


def test_unreadable_audio_without_duration(folder):
    (folder / "c.wav").write_bytes(b"not sound at all")
    with pytest.raises(DataError, match=r"line 1: cannot read audio .*c\.wav"):
        read_manifest(write(folder, {"audio": "c.wav", "text": build_target("כן")}))


def test_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="hebrew-asr prepare"):
        read_manifest(tmp_path / "train.jsonl")
