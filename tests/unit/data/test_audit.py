"""The audit finds each fault that is put into a set, and nothing in a sound one."""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

from hebrew_asr.audit.audit import as_json, audit, quantiles
from hebrew_asr.audit.checks import PROBLEM_KINDS
from hebrew_asr.audit.clips import measure
from hebrew_asr.audit.figures import Scale, histogram
from hebrew_asr.audit.page import write_audit
from hebrew_asr.commands.audit import Command
from hebrew_asr.data.manifest import Clip, write_manifest
from hebrew_asr.errors import DataError
from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.prompt import build_target
from tests.support import corpora

Change = Callable[[Path, list[Clip]], list[Clip]]


def make_set(folder: Path, clips: int = 24) -> tuple[list[Clip], list[Clip]]:
    """A sound set: every clip of its own group, a fifth of them to evaluate on."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for i in range(clips):
        path = folder / "clips" / f"{i}.flac"
        path.write_bytes(corpora.encode(corpora.voice(i, 2.0, 16_000), 16_000, "flac"))
        rows.append(Clip(str(path), build_target(corpora.sentence(i)), f"set/{i}", 2.0, f"g{i}"))
    return rows[: clips * 4 // 5], rows[clips * 4 // 5 :]


def audited(folder: Path, train: list[Clip], held: list[Clip]):
    write_manifest(folder / "train.jsonl", train)
    write_manifest(folder / "eval.jsonl", held)
    return audit(folder, processes=1)


def replaced(clip: Clip, **changes) -> Clip:
    return Clip(**{name: changes.get(name, getattr(clip, name)) for name in Clip.__slots__})


def test_a_sound_set_is_clean(tmp_path):
    found = audited(tmp_path, *make_set(tmp_path))
    assert found.clean and not found.suspects
    assert found.shared == {"audio": 0, "group": 0, "recording": 0, "sentence": 0}


def _truncate(folder: Path, clips: list[Clip]) -> list[Clip]:
    Path(clips[3].audio).write_bytes(Path(clips[3].audio).read_bytes()[:5000])
    return clips


def _delete(folder: Path, clips: list[Clip]) -> list[Clip]:
    Path(clips[3].audio).unlink()
    return clips


@pytest.mark.parametrize(
    ("kind", "change", "detail"),
    [
        ("audio", _truncate, "none of its 1 packets of sound can be decoded"),
        ("audio", _delete, "not be read|not found|No such file"),
        ("duration", lambda f, c: [replaced(c[0], duration_s=3.0), *c[1:]], "3.00 s stated, 2.00 s decoded"),
        ("text", lambda f, c: [replaced(c[0], text=build_target("שָׁלוֹם")), *c[1:]], "U\\+05B8|U\\+05C1"),
        ("no Hebrew", lambda f, c: [replaced(c[0], text=build_target("hello")), *c[1:]], "hello"),
        ("duplicate audio", lambda f, c: [*c, replaced(c[0], id="set/again")], "the same samples as set/0"),
    ],
)
def test_each_problem_is_found(tmp_path, kind, change: Change, detail):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, change(tmp_path, train), held)
    assert {problem.kind for problem in found.problems} == {kind}
    assert re.search(detail, found.problems[0].detail)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("group", {"group": "g0"}),
        ("sentence", {"text": build_target(corpora.sentence(0) + "!")}),
    ],
)
def test_each_leak_is_found(tmp_path, kind, changes):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, train, [replaced(held[0], **changes), *held[1:]])
    assert [problem.detail for problem in found.problems] == [f"{kind} on both sides"]
    assert found.shared[kind] == 1


def test_same_audio_on_both_sides_is_a_leak_and_a_duplicate(tmp_path):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, train, [*held, replaced(train[0], id="x", group="x", text=build_target("אחר"))])
    assert {problem.kind for problem in found.problems} == {"leak", "duplicate audio", "two texts"}


def test_ids_are_unique_over_both_sides(tmp_path):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, train, [replaced(held[0], id="set/0"), *held[1:]])
    assert "repeated id" in {problem.kind for problem in found.problems}


def test_a_recording_that_occurs_twice_under_one_id_does_occur_twice(tmp_path):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, train, [*held, train[0]])
    assert {"repeated id", "duplicate audio", "leak"} == {problem.kind for problem in found.problems}


def test_equal_sound_with_two_texts_is_named_with_both(tmp_path):
    train, held = make_set(tmp_path)
    found = audited(tmp_path, [*train, replaced(train[0], id="set/b", text=build_target("טקסט אחר"))], held)
    (problem,) = [problem for problem in found.problems if problem.kind == "two texts"]
    assert problem.clip_id == "set/b" and "טקסט אחר" in problem.detail and "set/0" in problem.detail


def test_a_number_sign_in_a_name_is_no_leak(tmp_path):
    train, held = make_set(tmp_path)
    train[0], held[0] = replaced(train[0], id="set/talk#1.wav"), replaced(held[0], id="set/talk#2.wav")
    train[1], held[1] = replaced(train[1], id="set/take#01"), replaced(held[1], id="set/take#02")
    assert audited(tmp_path, train, held).clean


def test_clips_of_one_recording_are_a_leak(tmp_path):
    train, held = make_set(tmp_path)
    for index, side in enumerate((train, held)):
        path = tmp_path / "clips" / f"000007-{index:02d}.flac"
        Path(side[0].audio).rename(path)
        side[0] = replaced(side[0], id=f"set/rec#{index:02d}", audio=str(path))
    assert [problem.detail for problem in audited(tmp_path, train, held).problems] == ["recording on both sides"]


@pytest.mark.parametrize("empty", [True, False])
def test_a_set_without_evaluation_clips_is_audited_and_says_so(tmp_path, capsys, empty):
    train, _ = make_set(tmp_path)
    write_manifest(tmp_path / "train.jsonl", train)
    if empty:
        (tmp_path / "eval.jsonl").write_text("")
    assert Command(str(tmp_path), processes=1).run() == 0
    assert "?        there are no evaluation clips" in capsys.readouterr().out
    assert "Not known: there are no evaluation clips" in (tmp_path / "audit.html").read_text()


def test_a_split_without_groups_says_what_it_cannot_know(tmp_path):
    train, held = (
        [replaced(clip, group="" if number % 2 else clip.id) for number, clip in enumerate(side)]
        for side in make_set(tmp_path)
    )
    found = audited(tmp_path, train, held)
    assert found.clean and "nothing says who speaks in 24 of 24 clips" in found.unchecked["leak"]
    assert as_json(found)["unchecked"] == found.unchecked


def test_what_is_odd_about_the_sound_is_heard(tmp_path):
    train, held = make_set(tmp_path, 60)
    mono = corpora.voice(1, 2.0, 16_000)
    for index, samples in enumerate((np.stack([mono, -mono], axis=1), 30 * corpora.voice(2, 2.0, 16_000))):
        train[index] = replaced(train[index], audio=str(tmp_path / "clips" / f"{index}.wav"))
        soundfile.write(train[index].audio, samples, 16_000, subtype="FLOAT")
    mono = corpora.voice(0, 2.0, 16_000)
    half = mono[: 24_000 + int(np.abs(mono[24_000:26_000]).argmax())]  # in the middle of a syllable
    train[2] = replaced(train[2], duration_s=len(half) / 16_000, text=build_target(corpora.sentence(2, 8)))
    soundfile.write(train[2].audio, half, 16_000)
    train[3] = replaced(train[3], audio=str(tmp_path / "clips" / "3.wav"))
    soundfile.write(train[3].audio, 32_768 * corpora.voice(3, 2.0, 16_000), 16_000, subtype="FLOAT")
    found = audited(tmp_path, train, held)
    assert [(problem.kind, problem.clip_id) for problem in found.problems] == [("audio", "set/3")]
    assert "where 1 is full scale" in found.problems[0].detail
    reasons = {suspect.clip.id: " ".join(suspect.reasons) for suspect in found.suspects}
    assert set(reasons) == {"set/0", "set/1", "set/2"}
    assert "channels cancel" in reasons["set/0"] and "over full scale" in reasons["set/1"]
    assert "sound may end before its text" in reasons["set/2"]


def test_odd_clips_are_listed_by_turns(tmp_path):
    train, held = make_set(tmp_path, 60)
    pcm = corpora.voice(1, 2.0, 16_000)
    for index, samples in enumerate((pcm * 1e-4, np.concatenate([np.zeros(160_000), pcm]), np.clip(pcm * 40, -1, 1))):
        soundfile.write(train[index].audio, samples, 16_000, subtype="PCM_16")
        train[index] = replaced(train[index], duration_s=len(samples) / 16_000)
    train[3] = replaced(train[3], text=build_target("כן " * 12 + "כן"))
    train[4] = replaced(train[4], text=build_target(f"{corpora.sentence(4)} " * 6))
    train[5] = replaced(train[5], text=build_target("international conference בכנס"))
    found = audited(tmp_path, train, held)
    kinds = {suspect.clip.id: suspect.reasons[0].partition(":")[0] for suspect in found.suspects}
    assert kinds == {
        "set/0": "very quiet",
        "set/1": "mostly silence",
        "set/2": "clipped",
        "set/3": "repetition",
        "set/4": "more text than speech",
        "set/5": "mostly another script",
    }


def test_changed_and_unfinished_sets_are_noticed(tmp_path):
    train, held = make_set(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": {"train.jsonl": "0" * 64, "gone.jsonl": "0" * 64}}))
    found = audited(tmp_path, train, held)
    assert [(p.kind, p.clip_id) for p in found.problems] == [
        ("files", "_SUCCESS"),
        ("files", "train.jsonl"),
        ("files", "gone.jsonl"),
    ]


@pytest.mark.parametrize("content", [[1], {"name": "set", "version": 3}, {"sha256": {}, "split": "80/20"}])
def test_a_file_of_another_program_called_as_the_manifest_of_prepare_is_none(tmp_path, capsys, content):
    train, held = make_set(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert audited(tmp_path, train, held).clean
    assert Command(str(tmp_path), processes=1).run() == 0
    assert "?        manifest.json is not of prepare" in capsys.readouterr().out


def test_exit_code_and_output(tmp_path, capsys):
    train, held = make_set(tmp_path)
    assert audited(tmp_path, train, held).clean
    assert Command(str(tmp_path), processes=1).run() == 0
    shown = capsys.readouterr().out
    assert shown.count("ok  ") == len(PROBLEM_KINDS) - 1 and "?        there is no manifest.json" in shown
    Path(train[0].audio).unlink()
    assert Command(str(tmp_path), out=tmp_path / "report", processes=1).run() == 1
    assert "PROBLEM  audio: 1" in capsys.readouterr().out
    written = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert not written["clean"] and written["problem_counts"]["audio"] == 1
    with pytest.raises(DataError, match="manifest not found"):
        audit(tmp_path / "nowhere")


def test_what_manifests_say_is_checked_without_any_sound(tmp_path, capsys):
    """More clips than one task takes, so a worker measures them and numbers go on from task to task."""
    sides = [
        [Clip(f"gone/{i}.flac", build_target(corpora.sentence(i)), f"set/{i}", 2.0, f"g{i}") for i in numbers]
        for numbers in (range(420), range(420, 500))
    ]
    sides[0][250] = replaced(sides[0][250], text=build_target("שָׁלוֹם"))
    sides[0][410] = replaced(sides[0][410], text=build_target("כן " * 9 + "כן"))
    sides[1][20] = replaced(sides[1][20], group="g300", text=sides[0][399].text)
    for name, side in zip(("train", "eval"), sides, strict=True):
        write_manifest(tmp_path / f"{name}.jsonl", side)
    assert Command(str(tmp_path), processes=1, decode=False).run() == 1
    shown = capsys.readouterr().out
    assert "?        no clip was decoded, so whether every file decodes is not known" in shown
    told = json.loads((tmp_path / "audit.json").read_text())
    assert [(problem["kind"], problem["id"]) for problem in told["problems"]] == [
        ("text", "set/250"),
        ("leak", "g300"),
        ("leak", normalize(corpora.sentence(399), "strict")),
    ]
    assert [suspect["id"] for suspect in told["suspects"]] == ["set/410"]
    assert told["keys_in_train_and_eval"] == {"group": 1, "recording": 0, "sentence": 1}
    assert (told["sides"]["eval"]["clips"], told["sides"]["eval"]["hours"]) == (80, round(160 / 3600, 4))
    assert told["formats"] == {} and told["sides"]["train"]["level_db"] == {}
    counts = Counter("".join(clip.transcript for side in sides for clip in side))
    assert {entry["character"]: entry["count"] for entry in told["charset"]} == dict(counts)
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<figure") == 3 and "<audio" not in page and "set/410" in page


def test_page_is_whole_and_safe(tmp_path):
    train, held = make_set(tmp_path)
    evil = '<script>alert("x")</script> כן כן כן כן כן'
    train[0] = replaced(train[0], text=build_target(evil), id="set/<img src=x>")
    found = audited(tmp_path, train, held)
    page = write_audit(found, tmp_path / "elsewhere").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page
    assert html.escape(evil, quote=False) in page
    assert 'dir="rtl"' in page and "prefers-color-scheme: dark" in page
    assert page.count("<figure") == 4 and re.search(r"Level: median -[\d.]+ dB, full scale is 0", page)
    players = re.findall(r'<audio[^>]* src="([^"]+)"', page)
    assert players and all((tmp_path / "elsewhere" / unquote(player)).is_file() for player in players)
    assert not re.search(r'(?:href|src)="(?:https?:)?//', page)


def test_a_clip_whose_name_is_not_utf_8_is_played_from_a_page_reached_by_a_link(tmp_path):
    folder = tmp_path / "a" / "set"
    (clip, *others), _ = make_set(folder)
    path = folder / "clips" / os.fsdecode("שלום.flac".encode("cp1255"))
    Path(clip.audio).rename(path)
    write_manifest(
        folder / "train.jsonl", [replaced(clip, audio=str(path), text=build_target("hello"), id="x"), *others]
    )
    (tmp_path / "link").symlink_to(folder)
    page = write_audit(audit(tmp_path / "link", processes=1), tmp_path / "link").read_text()
    assert 'src="clips/%F9%EC%E5%ED.flac"' in page


def test_measurements(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([tone, np.zeros(16_000)]), 16_000)
    sound = measure(tmp_path / "a.wav")
    assert (sound.duration_s, sound.rate_hz, sound.channels, sound.clipped) == (2.0, 16_000, 1, 0.0)
    assert sound.speech_s == pytest.approx(1.0, abs=0.03)
    assert sound.level_db == pytest.approx(10 * np.log10(0.125 / 2), abs=0.05)


def test_figures():
    assert Scale(0, 15, 0, 1).ticks() == [0, 5, 10, 15]
    few = histogram("Duration", "seconds", [1.0, 1.0, 3.0], [2.0])
    assert few.count("<rect") == 2 + 1  # two bars and the key
    assert few.count("v-16") == 1  # one mark for the one value, no line of shares
    many = histogram("Duration", "seconds", [1.0, 1.0, 3.0], [2.0] * 40)
    assert "v-16" not in many and many.count('class="line c2"') == 1 + 1  # the line and the key
    assert "NaN" not in histogram("One value", "s", [1.0], [])
    assert quantiles([]) == {} and quantiles([1, 2, 3])["median"] == 2


def test_json_has_no_numpy_left(tmp_path):
    json.dumps(as_json(audited(tmp_path, *make_set(tmp_path))))
