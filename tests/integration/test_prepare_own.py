"""A stranger's folder through ``prepare``: what is heard, what is named, and what is said about groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.prepare import prepare
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.training.arguments import TrainArguments
from hebrew_asr.training.check import check
from tests.support import corpora

pytestmark = pytest.mark.integration


def speak(path: Path, seed: int, duration_s: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(corpora.speech(seed, duration_s, path.suffix.lstrip(".")))
    return path


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
    assert "found in mine" in told
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
    with pytest.raises(DataError, match=r"out of 3: 3 no text\. A text goes beside .*dropped\.jsonl names each"):
        prepare(PrepareOptions(source=(str(mine),), out=out, processes=1))
    assert set(dropped(out).values()) == {"no text"}
    (mine / "0.txt").write_text(corpora.sentence(0))
    with pytest.raises(DataError, match=r"all 1 clips belong together.*2 no text.*dropped\.jsonl"):
        prepare(PrepareOptions(source=(str(mine),), out=tmp_path / "second", processes=1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "dropped.jsonl").write_text('{"my": "own"}\n')
    with pytest.raises(UsageError, match=r"holds dropped\.jsonl, not made by prepare"):
        prepare(PrepareOptions(source=(str(mine),), out=other, processes=1))


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
