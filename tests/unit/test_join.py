"""Sets that were prepared apart become one: what it holds, what it leaves out, and when it is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hebrew_asr.audio.decode import to_int16
from hebrew_asr.cli import main
from hebrew_asr.data.clips import Clip
from hebrew_asr.data.manifest import index_manifest, open_manifest, read_manifest, write_manifest
from hebrew_asr.errors import DataError
from hebrew_asr.remote.cache import set_folder
from hebrew_asr.text.prompt import build_target
from tests.support import corpora
from tests.support.disks import small_disk
from tests.support.lossy import served

LONG = "אחת שתיים שלוש ארבע חמש שש"


def make_set(folder: Path, train: list[Clip], evaluated: list[Clip] | None = None, *, indexed: bool = False) -> Path:
    """Write a set whose sound is a few bytes."""
    for side, clips in (("train", train), ("eval", evaluated or [])):
        for clip in clips:
            path = folder / clip.audio
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"sound of " + clip.id.encode())
        write_manifest(folder / f"{side}.jsonl", clips)
        if indexed and clips:
            index_manifest(folder / f"{side}.jsonl")
    return folder


def clip(name: str, group: str, text: str = "שלום") -> Clip:
    return Clip(f"clips/{name}.flac", build_target(text), name, 1.5, group)


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    crowd = [clip(f"crowd/{n}", f"speaker {n}") for n in range(4)]
    plenum = [clip(f"knesset/{n}", f"session {n % 2}", f"{LONG} {n}") for n in range(5)]
    one = make_set(tmp_path / "a", crowd, [clip("crowd/e", "speaker e")])
    return one, make_set(tmp_path / "b", plenum, [clip("knesset/e", "session e", LONG)], indexed=True)


def join(*words: object) -> int:
    return main(["join", *map(str, words)])


def dropped(folder: Path) -> dict[str, str]:
    rows = map(json.loads, (folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["id"]: f"{row['reason']}: {row['detail']}" for row in rows}


def test_a_joined_set_has_the_clips_of_all_and_copies_no_sound(sets, tmp_path, capsys):
    (tmp_path / ".tmp-both" / "sets").mkdir(parents=True)  # one was killed
    (tmp_path / ".tmp-both" / "sets" / "a").symlink_to(sets[0])
    assert join(*sets, "--out", tmp_path / "both") == 0, capsys.readouterr().err
    assert not list(tmp_path.glob(".*")) and (sets[0] / "train.jsonl").is_file()
    for side in ("train", "eval"):
        apart = [one for folder in sets for one in read_manifest(folder / f"{side}.jsonl")]
        assert read_manifest(tmp_path / "both" / f"{side}.jsonl") == apart, "order, and sound where it was"
        assert (tmp_path / "both" / f"{side}.arrow").is_file()
    files = [path for path in (tmp_path / "both").rglob("*") if path.suffix == ".flac"]
    assert not files, "rglob follows no links, and nothing else may hold sound"
    told = capsys.readouterr().out
    assert "knesset" in told and "crowd" in told and "left out, since" not in told
    record = json.loads((tmp_path / "both" / "joined.json").read_text())
    assert [one["place"] for one in record["sets"]] == [str(folder) for folder in sets]
    assert record["sets"][1]["sides"]["train"]["fingerprint"] == open_manifest(sets[1] / "train.jsonl").fingerprint
    assert main(["audit", str(tmp_path / "both"), "--no-decode"]) == 0, capsys.readouterr().out


def test_what_another_set_is_evaluated_on_is_not_trained_on(tmp_path, capsys):
    own = [clip("a/own", "dana", LONG), clip("a/same", "rina"), clip("a/short", "uri", "כן")]
    one = make_set(tmp_path / "a", own, [clip("a/e", "dana", "כן")])  # its own split stands
    other = make_set(tmp_path / "b", [clip("b/dana", "dana"), clip("b/1", "c")], [clip("b/e", "rina", f"{LONG}!")])
    assert join(one, other, "--out", tmp_path / "both") == 0, capsys.readouterr().err
    assert dropped(tmp_path / "both") == {
        "a/own": "sentence evaluated on: its sentence is in the evaluation of b",
        "a/same": "group evaluated on: rina is in the evaluation of b",
        "b/dana": "group evaluated on: dana is in the evaluation of a",
    }
    assert [one.id for one in read_manifest(tmp_path / "both" / "train.jsonl")] == ["a/short", "b/1"]
    told = capsys.readouterr().out
    assert "their group is evaluated on in another set: 2 clips" in told and "--own-groups" in told
    assert "their sentence is evaluated on in another set: 1 clip," in told


@pytest.mark.parametrize(("speaker", "advised"), [("rina", True), ("uri", False)])
def test_a_set_of_which_nothing_is_left_is_told_why(tmp_path, capsys, speaker, advised):
    one = make_set(tmp_path / "a", [clip("a/1", "rina", LONG)], [clip("a/e", "eli", "כן")])
    other = make_set(tmp_path / "b", [clip("b/1", "c")], [clip("b/e", speaker, f"{LONG}!")])
    assert join(one, other, "--out", tmp_path / "both") == 3
    told = capsys.readouterr().err
    assert "what it is evaluated on. a/1: " in told and ("--own-groups" in told) == advised


def with_sound(folder: Path, of: dict[str, tuple[int, str]], evaluated: int) -> Path:
    """A set of recordings, each by its number and kind of file; those from place ``evaluated`` on are evaluated on."""
    clips = []
    for name, (number, kind) in of.items():
        one = replace(clip(name, name, "כן"), audio=f"clips/{name}.{kind}", duration_s=0.5 + number % 2)
        clips.append(one)
    make_set(folder, clips[:evaluated], clips[evaluated:])
    for one, (number, kind) in zip(clips, of.values(), strict=True):
        sound = corpora.encode(to_int16(corpora.voice(number, one.duration_s, 16_000)), 16_000, kind)
        (folder / one.audio).write_bytes(sound if number < 90 else b"damaged")
    return folder


@pytest.mark.parametrize("processes", [False, True])
def test_equal_sound_is_left_out_of_training(tmp_path, capsys, monkeypatch, processes):
    """As flac, whose files say which samples they hold, and as wav, which is decoded; near or in other processes."""
    monkeypatch.setattr("hebrew_asr.audit.equal._WORTH_PROCESSES", 0 if processes else 2000)
    monkeypatch.setattr("hebrew_asr.audit.equal._CLIPS_PER_TASK", 2)
    sounds = {"a/1": (1, "flac"), "a/2": (2, "wav"), "a/3": (3, "flac"), "a/9": (91, "flac"), "a/e": (4, "flac")}
    one = with_sound(tmp_path / "a", sounds, 4)
    sounds = {"b/1": (4, "wav"), "b/2": (2, "flac"), "b/3": (1, "flac"), "b/4": (5, "wav"), "b/9": (91, "flac")}
    other = with_sound(tmp_path / "b", {**sounds, "b/e": (3, "flac"), "b/f": (2, "wav"), "b/g": (4, "flac")}, 5)
    third = with_sound(tmp_path / "c", {"c/1": (3, "wav"), "c/2": (7, "wav"), "c/e": (8, "wav")}, 2)
    assert join(one, other, third, "--out", tmp_path / "both") == 0, capsys.readouterr().err
    assert dropped(tmp_path / "both") == {
        "a/2": "sound evaluated on: its sound is in the evaluation of b",
        "a/3": "sound evaluated on: its sound is in the evaluation of b",
        "b/1": "sound evaluated on: its sound is in the evaluation of a",
        "b/2": "sound trained on: its sound is in the training clips of a",
        "b/3": "sound trained on: its sound is in the training clips of a",
        "c/1": "sound evaluated on: its sound is in the evaluation of b",
    }
    assert "their sound is evaluated on in another set: 4 clips" in (told := capsys.readouterr().out)
    assert "their sound is trained on in another set: 2 clips" in told
    evaluated = [clip.id for clip in read_manifest(tmp_path / "both" / "eval.jsonl")]
    assert evaluated == ["a/e", "b/e", "b/f", "b/g", "c/e"], "each set keeps its own, equal or not"
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "both")]) == 1
    assert "b/g: the same samples as a/e (eval)" in capsys.readouterr().out


def test_equal_sound_is_found_at_a_url(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = with_sound(tmp_path / "a", {"a/1": (1, "wav"), "a/2": (2, "flac"), "a/e": (3, "flac")}, 2)
    with_sound(tmp_path / "b", {"b/1": (3, "wav"), "b/2": (5, "flac"), "b/9": (93, "wav"), "b/e": (1, "flac")}, 3)
    with served(tmp_path, stall_s=0.1) as (address, _):
        assert join(one, f"{address}/b", "--out", tmp_path / "both") == 0
    assert set(dropped(tmp_path / "both")) == {"a/1", "b/1"}


def test_a_flac_file_that_says_nothing_of_its_samples_is_decoded(tmp_path):
    sounds = {"a/1": (1, "flac"), "a/2": (2, "flac"), "a/e": (4, "flac")}
    one, other = (
        with_sound(tmp_path / "a", sounds, 2),
        with_sound(tmp_path / "b", {"b/1": (5, "wav"), "b/e": (1, "flac")}, 1),
    )
    path = one / "clips" / "a" / "1.flac"
    content = path.read_bytes()
    path.write_bytes(content[:26] + bytes(16) + content[42:])
    assert join(one, other, "--out", tmp_path / "both") == 0
    assert dropped(tmp_path / "both") == {"a/1": "sound evaluated on: its sound is in the evaluation of b"}


def test_numbered_speakers_are_told_apart_where_that_is_said(tmp_path, capsys):
    one, other = (make_set(tmp_path / n, [clip(f"{n}/1", "1")], [clip(f"{n}/2", "1", "כן")]) for n in ("a", "b"))
    assert join(one, other, "--out", tmp_path / "both") == 3
    assert "a/1: 1 is in the evaluation of b" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "nothing is left by half"
    assert join(one, other, "--out", tmp_path / "both", "--own-groups") == 0
    assert [one.group for one in read_manifest(tmp_path / "both" / "train.jsonl")] == ["a/1", "b/1"]


def test_equal_ids_are_told_and_names_tell_them_apart(tmp_path, capsys):
    one, other = (make_set(tmp_path / n / "mine", [clip("1", "1"), clip("2", n)], [clip("3", n)]) for n in ("a", "b"))
    assert join(one, other, "--out", tmp_path / "both") == 3
    assert "2 clips of" in (told := capsys.readouterr().err) and "1 among them" in told and "NAME=" in told
    assert join(f"x={one}", f"y={other}", "--out", tmp_path / "both") == 0, capsys.readouterr().err
    both = read_manifest(tmp_path / "both" / "train.jsonl")
    assert [(one.id, one.group) for one in both] == [("x/1", "x/1"), ("x/2", "a"), ("y/1", "y/1"), ("y/2", "b")]
    assert [Path(one.audio).read_bytes() for one in both] == [b"sound of " + n for n in (b"1", b"2", b"1", b"2")]
    assert join(f"x={one}", other, "--out", tmp_path / "third") == 0, "one name is enough"


def test_a_set_that_changed_since_is_refused(sets, tmp_path, capsys):
    both = tmp_path / "both"
    assert join(*sets, "--out", both) == 0
    was = (sets[1] / "train.jsonl").read_bytes()
    make_set(sets[1], [clip("knesset/0", "session 0")], [clip("knesset/e", "session e", LONG)])
    with pytest.raises(DataError, match=r"b is not what was joined into .*both: its train.jsonl has changed"):
        open_manifest(both / "train.jsonl")
    assert len(open_manifest(both / "eval.jsonl")) == 2, "this side is as it was"
    capsys.readouterr()
    assert main(["audit", str(both), "--no-decode"]) == 1
    assert f"{sets[1]}/train.jsonl: has changed since: it is not what was joined" in capsys.readouterr().out
    (sets[1] / "train.jsonl").unlink()
    assert main(["eval", "--model", "none", "--data", str(both / "train.jsonl")]) in (3, 5)
    with pytest.raises(DataError, match=r"train.jsonl is gone"):
        open_manifest(both / "train.jsonl")
    (sets[1] / "train.jsonl").write_bytes(was)
    assert len(open_manifest(both / "train.jsonl", check_audio=False)) == 9
    for damage in ("{", "[" * 200_000):
        (both / "joined.json").write_text(damage)
        with pytest.raises(DataError, match=r"cannot read .*joined.json"):
            open_manifest(both / "train.jsonl")


def test_sound_is_found_through_links_by_absolute_paths_and_outside(sets, tmp_path, capsys):
    (sets[0] / "clips").rename(tmp_path / "disk")
    (sets[0] / "clips").symlink_to(tmp_path / "disk")
    absolute = [
        replace(one, audio=str(sets[1] / one.audio)) for one in (clip("knesset/0", "s"), clip("knesset/1", "t"))
    ]
    outside = clip("crowd/0", "u")
    lines = (json.dumps({"audio": one.audio, "text": one.text, "id": f"z{one.id}"}) for one in absolute)
    far = json.dumps({"audio": str(tmp_path / "disk" / "crowd" / "1.flac"), "text": outside.text, "id": "far"})
    third = make_set(tmp_path / "c", [])
    rows = [f'{line[:-1]}, "duration_s": 1.5}}\n' for line in (*lines, far)]
    (third / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    assert join(sets[0], third, "--out", tmp_path / "both") == 3
    assert "leaves the manifest's folder" in capsys.readouterr().err
    assert join(sets[0], third, "--out", tmp_path / "both", "--allow-outside") == 0, capsys.readouterr().err
    with pytest.raises(DataError, match="leaves the manifest's folder"):
        open_manifest(tmp_path / "both" / "train.jsonl")
    found = read_manifest(tmp_path / "both" / "train.jsonl", allow_outside=True)
    assert [Path(one.audio).read_bytes() for one in found[:4]] == [b"sound of crowd/%d" % n for n in range(4)]
    assert len(found) == 7
    (sets[1] / "train.jsonl").write_text("".join(rows[:2]), encoding="utf-8")
    (sets[1] / "train.arrow").unlink()
    assert join(*sets, "--out", tmp_path / "inside") == 0, capsys.readouterr().err
    audio = [json.loads(line)["audio"] for line in (tmp_path / "inside" / "train.jsonl").read_text().splitlines()]
    assert audio[4:] == ["sets/b/clips/knesset/0.flac", "sets/b/clips/knesset/1.flac"]


@pytest.mark.parametrize(
    ("audio", "told"),
    [
        ("http://127.0.0.1:9/set/x.flac", "only a set of `hebrew-asr join` may name URLs"),
        ("http://127.0.0.1:9/other/../set/x.flac", "only a set of `hebrew-asr join` may name URLs"),
    ],
)
def test_no_other_manifest_leads_to_urls(tmp_path, audio, told):
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": audio, "text": "כן", "id": "1", "duration_s": 1.0}))
    for where in ([], [{"name": "a", "place": "http://127.0.0.1:9/other", "sides": {}, "tables": {}}]):
        (tmp_path / "joined.json").write_text(json.dumps({"sets": where}))
        with pytest.raises(DataError, match=told):
            open_manifest(tmp_path / "train.jsonl", check_audio=False, allow_outside=True)


def test_a_joined_set_that_is_put_at_a_url_leads_to_no_other(sets, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(tmp_path, stall_s=0.1) as (address, _):
        assert join(sets[0], f"{address}/b", "--out", tmp_path / "both") == 0
        assert open_manifest(tmp_path / "both" / "train.jsonl")[4].audio == f"{address}/b/clips/knesset/0.flac"
        with pytest.raises(DataError, match=rf"leaves the set at {address}/both"):
            open_manifest(set_folder(f"{address}/both") / "train.jsonl")


def test_what_cannot_be_joined_is_said(sets, tmp_path, capsys):
    both = tmp_path / "both"
    assert join(*sets, "--out", both) == 0
    for words, code, told in (
        ([sets[0], "--out", tmp_path / "x"], 2, "name two or more"),
        ([*sets, "--out", both], 2, "there already"),
        ([both, sets[0], "--out", tmp_path / "x"], 2, "was joined itself"),
        ([f"n={sets[0]}", f"n={sets[1]}", "--out", tmp_path / "x"], 2, "two sets are to be called n"),
        ([f"..={sets[0]}", sets[1], "--out", tmp_path / "x"], 3, "manifest not found"),
        ([sets[0], f"n={sets[0]}/../a", "--out", tmp_path / "x"], 2, f"{sets[0]} is named twice"),
        ([*sets, "--out", sets[0] / "clips" / "x"], 2, f"lies in {sets[0]}, and would hold a link to itself"),
        ([sets[0], tmp_path / "none", "--out", tmp_path / "x"], 3, "manifest not found"),
        ([*sets, "--out", "."], 2, "--out . is the folder you are in"),
    ):
        assert join(*words) == code and told in capsys.readouterr().err
    for command in ("plan", "train"):
        assert main([command, "--ds", "cpu", "--data", str(sets[0]), f"--data={sets[1]}"]) == 2
        assert "hebrew-asr join" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_told_of_the_folder_that_was_asked_for(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with small_disk(tmp_path / "disk", "4k") as disk:
        assert join(*sets, "--out", "disk/both") == 4
        assert "error: No space left on device: disk/both/" in capsys.readouterr().err and not list(disk.iterdir())


def test_a_folder_whose_name_looks_like_a_name_given_is_that_folder(sets, tmp_path, capsys, monkeypatch):
    sets[0].rename(tmp_path / "voice=b")
    monkeypatch.chdir(tmp_path)
    assert join("voice=b", "b", "--out", "both") == 0, capsys.readouterr().err
    record = json.loads(Path("both/joined.json").read_text())
    assert [one["place"] for one in record["sets"]] == [f"{tmp_path}/voice=b", f"{tmp_path}/b"]
