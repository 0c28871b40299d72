"""The manifest: official schema in and out; what is wrong is told with its line, and nothing is half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

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
        (
            [row(), row(id="2", text="language Hebrew<asr_text> ")],
            "line 2: the transcript is empty; leave the clip out",
        ),
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
    with pytest.raises(DataError, match=r"line 1: cannot use audio .*c\.wav"):
        read_manifest(write(folder, {"audio": "c.wav", "text": build_target("כן")}))


def test_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="hebrew-asr prepare"):
        read_manifest(tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": build_target("שלום<|im_end|>")}, r"<\|im_end\|>, which the model takes for a control token"),
        ({"text": build_target("כן <asr_text> לא")}, "<asr_text>, which"),
        ({"text": "language Hebrew<|audio_pad|><asr_text>שלום"}, r"<\|audio_pad\|>, which"),
        ({"text": build_target("<think>שלום")}, "<think>, which"),
        ({"text": build_target("\ud800שלום")}, "the text holds half a surrogate pair"),
        ({"id": "\udfff"}, "the id holds half a surrogate pair"),
        ({"group": "\uda00"}, "the group holds half a surrogate pair"),
        ({"duration_s": float("inf")}, "Infinity is not a number in JSON"),
        ({"duration_s": float("nan")}, "NaN is not a number in JSON"),
        ({"other": [float("-inf")]}, "-Infinity is not a number in JSON"),
        ({"duration_s": True}, "duration_s is True, not a number of seconds"),
        ({"duration_s": "1.5"}, "duration_s is '1.5', not a number"),
        ({"duration_s": 10**400}, "duration_s is 1000.*…, not a number of seconds"),
        ({"duration_s": 0}, "duration_s is 0,"),
        ({"id": ["a"]}, r"id is \['a'\], not a string"),
        ({"id": 1.5}, "id is 1.5, not a string"),
        ({"id": False}, "id is False, not a string"),
        ({"group": {}}, "group is {}, not a string"),
        ({"audio": "a\0.wav"}, "audio file not found"),
        ({"audio": "x" * 5000}, "audio file not found: .{100,400}…"),
        ({"audio": "\ud800.wav"}, "audio file not found"),
        ({"audio": "sub/../.."}, "leaves the manifest's folder"),
        ({"audio": "."}, "audio file not found"),
        ({"audio": ""}, "audio file not found"),
        ({"audio": "/etc/hostname"}, "leaves the manifest's folder; if it may, set data.allow_outside=true"),
    ],
)
def test_values_that_cannot_be_are_told_with_their_line(folder, changes, told):
    """Written as JSON writes them: escaped, with NaN and Infinity where Python allows them."""
    path = folder / "train.jsonl"
    path.write_text(json.dumps(row()) + "\n" + json.dumps({**row(id="2"), **changes}) + "\n", encoding="ascii")
    with pytest.raises(DataError, match=f"manifest .*: line 2: .*{told}") as raised:
        read_manifest(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"audio": "a.wav", "text": "א", "text": "ב"}', "the key 'text' occurs twice"),
        ('{"audio": "a.wav"', "not JSON: Expecting ',' delimiter at column 18"),
        ('{"audio": "a.wav", "text": "א"} {}', "more follows at column 32"),
        ('{"audio": "a.wav", "text": "א", "duration_s": 1e999}', "duration_s is inf, not a number of seconds"),
        ("[" * 100_000, "(recursion|Stack overflow)"),
        ('{"audio": "a.wav", "text": "' + "א" * 600_000, "is longer than 1 MiB"),
        ("שלום", "not JSON"),
    ],
    ids=lambda value: value[-20:],
)
def test_lines_that_are_no_clip(folder, line, told):
    (folder / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"line 1.*{told}"):
        read_manifest(folder / "train.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be", "cp1255", "iso8859-8"])
def test_other_encodings_are_told_with_what_to_do(folder, encoding):
    text = json.dumps(row(), ensure_ascii=False) + "\n"
    (folder / "train.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="UTF-8") as raised:
        read_manifest(folder / "train.jsonl")
    assert "iconv -f" in str(raised.value) and "train.jsonl" in str(raised.value) and raised.value.exit_code == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_a_byte_order_mark_and_any_line_ending_are_read(folder, encoding, ending):
    rows = [row(id="א"), row(id=7, duration_s=1), {"audio": "b.wav", "text": "כן", "id": None, "group": None}]
    text = ending.join(json.dumps(r, ensure_ascii=False) for r in rows)
    (folder / "train.jsonl").write_bytes(text.encode(encoding))
    clips = read_manifest(folder / "train.jsonl")
    assert [clip.id for clip in clips[:2]] == ["א", "7"] and clips[2].id.startswith("b.wav#")
    assert [clip.duration_s for clip in clips] == [0.5, 1.0, 0.5] and clips[2].group == ""


def test_a_wide_manifest_that_is_damaged_is_told(folder):
    content = (json.dumps(row(), ensure_ascii=False) + "\n").encode("utf-16")
    (folder / "train.jsonl").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"train\.jsonl is damaged after line \d: not UTF-16"):
        read_manifest(folder / "train.jsonl")


def test_what_lies_outside_is_read_only_where_that_is_allowed(tmp_path):
    """Absolutely or upwards, also through a link. Links in the folder itself are its owner's, as in the hub's cache."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.wav", np.zeros(8000, np.int16), 16_000)
    (inside / "link.wav").symlink_to(outside / "a.wav")
    (inside / "linked").symlink_to(outside)
    (inside / "within.wav").symlink_to(inside / "sub" / "a.wav")
    (tmp_path / "alias").symlink_to(inside)
    stays = ["sub/a.wav", "./sub/../sub//a.wav", str(inside / "sub" / "a.wav"), "within.wav", "../in/sub/a.wav"]
    stays.append(str(tmp_path / "alias" / "sub" / "a.wav"))
    leaves = ["../out/a.wav", str(outside / "a.wav"), str(inside / "link.wav"), "sub/../../out/a.wav"]
    leaves += ["sub/../linked/a.wav", "../in/link.wav"]
    for manifest in (inside / "train.jsonl", tmp_path / "alias" / "eval.jsonl"):
        for written in stays:
            write(inside, row(audio=written))
            (inside / "eval.jsonl").write_bytes((inside / "train.jsonl").read_bytes())
            for check in (True, False):
                assert Path(read_manifest(manifest, check_audio=check)[0].audio).samefile(inside / "sub" / "a.wav")
        for written in ("link.wav", "linked/a.wav", "./linked//a.wav"):
            write(inside, row(audio=written))
            (inside / "eval.jsonl").write_bytes((inside / "train.jsonl").read_bytes())
            for check in (True, False):
                assert Path(read_manifest(manifest, check_audio=check)[0].audio).samefile(outside / "a.wav")
        for written in leaves:
            write(inside, row(audio=written))
            (inside / "eval.jsonl").write_bytes((inside / "train.jsonl").read_bytes())
            for check in (True, False):
                with pytest.raises(DataError, match=r"leaves the manifest's folder.*allow_outside=true.*--allow-out"):
                    read_manifest(manifest, check_audio=check)
                (clip,) = read_manifest(manifest, check_audio=check, allow_outside=True)
                assert Path(clip.audio).is_absolute() and Path(clip.audio).samefile(outside / "a.wav")


def test_names_that_are_not_utf_8_are_written_and_read(folder):
    name = os.fsdecode(b"\xf9\xec.wav")
    (folder / name).write_bytes((folder / "a.wav").read_bytes())
    clips = [Clip(str(folder / name), build_target("שלום"), "1", 0.5)]
    write_manifest(folder / "train.jsonl", clips)
    assert read_manifest(folder / "train.jsonl") == clips
    (unnamed,) = read_manifest(write(folder, {"audio": "a.wav", "text": "כן"}))
    assert unnamed.id == "a.wav#1"
    path = folder / "ascii.jsonl"
    path.write_text(json.dumps({"audio": name, "text": "כן"}), encoding="ascii")
    (official,) = read_manifest(path)
    assert official.id == "\\udcf9\\udcec.wav#1" and official.duration_s == 0.5


def test_many_lines_are_read_without_looking_at_each_file(folder, monkeypatch):
    """Ten thousand files in one folder: it is listed once, and no system call is made for a file."""
    (folder / "clips").mkdir()
    for index in range(10_000):
        (folder / "clips" / f"{index}.wav").touch()
    path = write(folder, *[row(audio=f"clips/{index}.wav", id=str(index)) for index in range(10_000)])
    looked = []
    for function in (os.path.realpath, os.path.islink, os.path.isfile, os.scandir):
        monkeypatch.setattr(*_spied(function, looked))
    assert len(read_manifest(path)) == 10_000
    assert len(looked) < 10


def _spied(function, calls):
    module = os if function is os.scandir else os.path

    def spy(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    return module, function.__name__, spy
