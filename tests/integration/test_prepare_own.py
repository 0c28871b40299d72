"""A stranger's folder through ``prepare``: what is heard, what is named, and what is said about groups."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from hebrew_asr.cli import main
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.prepare import prepare
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.check import check
from tests.support import corpora
from tests.support.tiny_task import events, free_port, train_arguments

pytestmark = pytest.mark.integration


def speak(path: Path, seed: int, duration_s: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(corpora.speech(seed, duration_s, path.suffix.lstrip(".")))
    return path


def subtitles(*stretches_s: tuple[float, float], first: int = 1) -> str:
    times = [[f"00:00:{int(at):02d},{round(at % 1 * 1000):03d}" for at in stretch] for stretch in stretches_s]
    return "".join(f"{n}\n{a} --> {b}\n{corpora.sentence(n, 12)}\n\n" for n, (a, b) in enumerate(times, first))


def dropped(out: Path) -> dict[str, str]:
    return {row["id"].partition("/")[2]: row["reason"] for row in corpora.lines_of(out / "dropped.jsonl")}


def lines(out: Path, side: str) -> list[dict[str, str]]:
    return corpora.lines_of(out / f"{side}.jsonl")


def kept(out: Path) -> dict[str, float]:
    rows = [row for side in ("train", "eval") for row in corpora.lines_of(out / f"{side}.jsonl")]
    return {row["id"].partition("/")[2]: row["duration_s"] for row in rows}


def test_long_and_short_wrong_and_right(tmp_path, capsys):
    """Timed text is cut, plain text is kept whole, and each of the others falls out by its name."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    for number in range(12):
        speak(mine / f"talk_{number:03d}.wav", number).with_suffix(".txt").write_text(corpora.sentence(number))
    cues = "".join(
        f"{n}\n00:00:{2 * n + a:02d},000 --> 00:00:{2 * n + a + 2:02d},000\n{corpora.sentence(90 + n, 4)}\n\n"
        for n, a in enumerate((1, 1, 1, 4, 4, 4))
    )
    bad = "7\n00:00:19,000 --> 00:00:18,000\nשלום\n\n8\n00:00:20,500 --> 00:00:22,000\n[מוזיקה]\n"
    speak(mine / "interview_1.flac", 50, 24.0).with_suffix(".srt").write_text(cues + bad)
    speak(mine / "unlabelled.wav", 60)
    speak(mine / "interview_2.mp3", 61, 20.0).with_suffix(".txt").write_text("ארוך מדי ובלי זמנים" * 5)
    (mine / "broken.flac").write_bytes(b"fLaC and then nothing")
    (mine / "broken.txt").write_text("שלום")
    (mine / "alone.txt").write_text("שלום")
    (mine / "._talk_000.wav").write_bytes(b"\0\5\26\7")
    options = PrepareOptions(source=(str(mine),), out=out, eval_fraction=0.2, processes=1)
    manifest = prepare(options)
    told = capsys.readouterr().out
    assert ": 1 shard, " in told and not re.search(r"(train|eval) .* 0\.00 ", told), "a small set has hours too"
    assert dropped(out) == {
        "unlabelled.wav": "no text",
        "interview_2.mp3": "too long",
        "broken.flac": "undecodable audio",
        "alone.txt": "no recording",
        "interview_1.flac#unused-00": "ends before it starts",
        "interview_1.flac#unused-01": "not speech",
    }
    cuts = {name: lasts_s for name, lasts_s in kept(out).items() if "#" in name}
    assert sum(cuts.values()) == pytest.approx(12.0, abs=2.0) and len(kept(out)) == 12 + len(cuts)
    assert manifest["sources"][0]["recordings"] == 17
    assert manifest["split"]["clips_without_group"] == len(kept(out))
    assert manifest["split"]["groups"]["mine"]["eval"] >= 3
    assert "nothing says who speaks" in told and "sub-folder" in told and "(talk, interview)" in told
    assert "recordings in mine" in told
    prepare(options)
    assert f"{out} is ready: " in capsys.readouterr().out

    by_name = PrepareOptions(
        source=(str(mine),), out=tmp_path / "named", eval_fraction=0.2, processes=1, group_by_name=True
    )
    manifest = prepare(by_name)
    sides = {row["group"]: side for side in ("train", "eval") for row in lines(tmp_path / "named", side)}
    assert sides == {"mine/talk": "train", "mine/interview": "eval"} and manifest["split"]["clips_without_group"] == 0
    assert "nothing says" not in capsys.readouterr().out


def test_where_no_clip_is_left_each_is_named_and_the_folder_serves_again(tmp_path):
    mine, out = tmp_path / "mine", tmp_path / "out"
    for number in range(3):
        speak(mine / f"{number}.wav", number)
    with pytest.raises(
        DataError, match=r"out of 3: 3 no text\. A text goes beside .*dropped\.jsonl names each that fell out"
    ):
        prepare(PrepareOptions(source=(str(mine),), out=out, processes=1))
    assert set(dropped(out).values()) == {"no text"}
    (mine / "0.txt").write_text(corpora.sentence(0))
    with pytest.raises(DataError, match=r"all 1 clips belong together.*2 no text.*dropped\.jsonl"):
        prepare(PrepareOptions(source=(str(mine),), out=tmp_path / "second", processes=1))
    one = tmp_path / "one"
    speak(one / "long.wav", 7, 30.0)
    (one / "long.srt").write_text(subtitles((0.5, 12.0), (13.0, 27.0)))
    with pytest.raises(DataError, match=r"all 2 clips belong together.*nothing to evaluate on$"):  # and none fell out
        prepare(PrepareOptions(source=(str(one),), out=tmp_path / "third", processes=1))
    with pytest.raises(UsageError, match="begun with other options"):
        prepare(PrepareOptions(source=(str(one),), out=tmp_path / "third", processes=1, recut_max_s=10.0))
    prepare(PrepareOptions(source=(str(one),), out=tmp_path / "third", processes=1, split="random"))  # as it was told
    assert len(kept(tmp_path / "third")) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "dropped.jsonl").write_text('{"my": "own"}\n')
    with pytest.raises(UsageError, match=r"holds dropped\.jsonl, not made by prepare"):
        prepare(PrepareOptions(source=(str(mine),), out=other, processes=1))


def test_four_layouts_are_prepared_found_sound_and_trained_on(task, warm, tmp_path):
    """Texts beside recordings, a csv, stretches of one recording as NeMo lists them, and subtitles beside one."""
    for seed in range(5):
        speak(tmp_path / "pairs" / f"{seed}.flac", seed).with_suffix(".txt").write_text(corpora.sentence(seed))
        speak(tmp_path / "csv" / f"{seed}.mp3", 10 + seed)
    rows = [f"{seed}.mp3,{corpora.sentence(10 + seed)}\n" for seed in range(5)]
    (tmp_path / "csv" / "metadata.csv").write_text("".join(["file_name,transcription\n", *rows]))
    stretches = [
        {"audio_filepath": name, "offset": 3.0 * n, "duration": 2.5, "text": corpora.sentence(20 + n, 4)}
        for name, counted in (("long.wav", range(4)), ("other.wav", range(4, 6)))
        for n in counted
    ]
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in stretches))
    (tmp_path / "srt").mkdir()
    for seed, (name, times) in enumerate({"long": ((0.5, 12.0), (13.0, 25.0)), "other": ((2.0, 13.0),)}.items()):
        speak(tmp_path / "nemo" / f"{name}.wav", 20 + seed, 20.0)
        speak(tmp_path / "srt" / f"{name}.flac", 30 + seed, 27.0)
        (tmp_path / "srt" / f"{name}.srt").write_text(subtitles(*times, first=10 * seed))
    for layout, clips in {"pairs": 5, "csv": 5, "nemo": 6, "srt": 3}.items():
        out = tmp_path / "out" / layout
        asked = ["prepare", "--source", str(tmp_path / layout), "--out", str(out), "--processes", "1"]
        assert main([*asked, "--eval-fraction", "0.25"]) == 0 and len(kept(out)) == clips
        assert main(["audit", str(out)]) == 0
    for layout in ("pairs", "srt"):
        run = tmp_path / "runs" / layout
        changes = [f"data.folder={tmp_path / 'out' / layout}", "phases.0.epochs=1", "phases.1.epochs=1"]
        done = warm.finish(train_arguments(task, run, *changes, "evaluation.at_start=false"), port=free_port())
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(events(run, "train")) >= 2 and (run / "final" / "config.json").is_file()


def test_segments_whose_times_are_milliseconds_are_told_of_their_unit(tmp_path):
    mine = tmp_path / "mine"
    speak(mine / "a.wav", 1, 6.0)
    said = [{"start": 100, "end": 2500, "text": corpora.sentence(1)}, {"start": 3e3, "end": 5e3, "text": "שלום"}]
    (mine / "a.json").write_text(json.dumps({"segments": said}))
    with pytest.raises(DataError, match=r"2 timestamps past the end of the audio\. Times of segments are seconds"):
        prepare(PrepareOptions(source=(str(mine),), out=tmp_path / "out", processes=1))


def test_names_and_texts_that_are_not_unicode(tmp_path):
    """As old archives hold names in the Hebrew of Windows, and JSON can spell half a letter."""
    mine = tmp_path / "mine"
    for number in range(4):
        folder = mine / os.fsdecode(f"דנה {number % 2}".encode("cp1255"))
        speak(folder / f"{number}.wav", number).with_suffix(".txt").write_text(corpora.sentence(number))
    rows = [{"audio": name, "text": "שלום"} for name in ("a\0.wav", "a\ud800.wav")]
    rows += [{"audio": f"{n}.wav", "text": corpora.sentence(n) + half} for n, half in ((4, ""), (5, "\ud800"))]
    for number in (4, 5):
        speak(tmp_path / "listed" / f"{number}.wav", number)
    (tmp_path / "listed" / "clips.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources = [str(mine), str(tmp_path / "listed")]
    prepare(PrepareOptions(source=sources, out=tmp_path / "out", eval_fraction=0.4))
    assert {*kept(tmp_path / "out")} == {"4.wav", *(rf"\udce3\udcf0\udce4 {n % 2}/{n}.wav" for n in range(4))}
    assert dropped(tmp_path / "out") == {
        "a\0.wav": "no audio file",
        r"a\ud800.wav": "no audio file",
        "5.wav": "unreadable text",
    }


def test_stretches_are_cut_and_what_lies_past_the_end_is_named(tmp_path, capsys):
    mine, out = tmp_path / "mine", tmp_path / "out"
    speak(mine / "long.wav", 1, 20.0)
    speak(mine / "short.wav", 2, 6.0)
    spans = [(1.0, 1.5), (4.0, 2.25), (19.0, 3.0), (30.0, 1.0)]
    lines = [
        {"audio_filepath": "long.wav", "offset": offset, "duration": lasts, "text": corpora.sentence(n, 3)}
        for n, (offset, lasts) in enumerate(spans)
    ]
    lines.append({"audio_filepath": "short.wav", "duration": 2.0, "text": corpora.sentence(9, 3)})
    (mine / "manifest.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    prepare(PrepareOptions(source=(str(mine),), out=out, eval_fraction=0, processes=1))
    assert kept(out) == {"long.wav@1": 1.5, "long.wav@4": 2.25}
    assert dropped(out) == {
        "long.wav@19": "past the end of the audio",
        "long.wav@30": "past the end of the audio",
        "short.wav": "longer than stated",
    }
    assert {row["group"] for row in corpora.lines_of(out / "train.jsonl")} == {"mine/long.wav"}
    assert "training, which measures on them, refuses this set" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"eval\.jsonl holds no clips, and training measures on them: prepare without"):
        check(
            TrainArguments(
                str(Path(__file__).parents[2] / "ds_configs/cpu.json"), data=str(out), run_dir=str(tmp_path / "run")
            )
        )
