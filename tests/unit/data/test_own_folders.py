"""A stranger's folder of recordings: every layout and habit, and every row of it either read or named."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hebrew_asr.corpus.preparation.recut import recut
from hebrew_asr.errors import DataError
from hebrew_asr.sources import Row, open_source
from hebrew_asr.sources.subtitles import parse_subtitles
from hebrew_asr.sources.textgrid import parse_textgrid
from hebrew_asr.text.timestamps import Segment, from_cues
from tests.support import corpora


def rows_of(spec: Path, *, held_out: bool | None = None) -> list[Row]:
    shards = [shard for shard in open_source(str(spec)).shards if held_out in (None, shard.held_out)]
    return [row for shard in shards for unit in shard.units() for _, row in unit.rows()]


def problems_of(rows: list[Row]) -> dict[str, str]:
    return {row.id: row.problem[0] for row in rows if row.problem}


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# -- listings


def test_a_tsv_has_no_quoting(tmp_path):
    """One quotation mark must not swallow the rows after it, and every row is there."""
    files(tmp_path, *(f"clips/{i}.mp3" for i in range(40)))
    texts = [f'"שלום {i}' if i % 7 == 0 else f'צה"ל "אמר" {i}' for i in range(40)]
    lines = [f"c{i}\t{i}.mp3\t{text}\t2" for i, text in enumerate(texts)]
    write(tmp_path / "validated.tsv", "\r\n".join(["client_id\tpath\tsentence\tup_votes", *lines, ""]), "utf-8-sig")
    rows = rows_of(tmp_path / "validated.tsv")
    assert [row.text for row in rows] == texts and not problems_of(rows)
    assert rows[3].groups == ("speaker:c3",)


def test_a_field_of_a_tsv_that_excel_has_quoted_is_what_it_says(tmp_path):
    texts = ['ד"ר כהן אמר "שלום"', '"כן"', '"כן" או "לא"', '""', '"']
    excel = ['"ד""ר כהן אמר ""שלום"""', *texts[1:]]
    files(tmp_path, *(f"{number}.wav" for number in range(len(texts))))
    lines = [f"{number}.wav\t{text}\n" for number, text in enumerate(excel)]
    assert [row.text for row in rows_of(write(tmp_path / "m.tsv", "path\ttext\n" + "".join(lines)))] == texts


def test_a_tsv_row_that_lost_a_field_is_named(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "x.tsv", "path\tsentence\tvotes\na.wav\tשלום\t1\nb.wav\tשלום\nc.wav\tשלום\t1\t2\n")
    assert problems_of(rows_of(tmp_path / "x.tsv")) == {
        "x.tsv, line 3": "malformed line",
        "x.tsv, line 4": "malformed line",
    }


@pytest.mark.parametrize(
    "row", ['a.wav,"שלום', 'a.wav,"מה" שאל', 'a.wav,"שלום\nb.wav,עולם\nc.wav,"לילה"', 'a.wav,"שלום\nb.wav,עולם"']
)
def test_a_csv_in_which_a_quotation_mark_swallows_rows_is_an_error(tmp_path, row):
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    write(tmp_path / "m.csv", f"path,text\n{row}\n")
    with pytest.raises(DataError, match=r"m\.csv, line 2: .*as \.tsv"):
        open_source(str(tmp_path / "m.csv"))


def test_a_csv_may_hold_quoted_line_ends(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "m.csv", 'path,text\na.wav,"שלום\nעולם, ""טוב"""\n\nb.wav,צה"ל\n')
    assert [row.text for row in rows_of(tmp_path / "m.csv")] == ['שלום\nעולם, "טוב"', 'צה"ל']


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "{0}|טקסט כתוב|שלום\n"),  # LJSpeech
        ("m.csv", "File_Name;Transcription;Speaker ID\n{0}.wav;שלום;dana\n"),
        ("m.csv", "\ufeffPath,Sentence\r\n{0}.wav,שלום\r\n"),
        ("m.csv", "wav\ttranscript\r{0}.wav\tשלום\r"),
        ("m.tsv", "audio_filepath\ttext\n.\\wavs\\{0}.wav\tשלום\n"),
        ("m.csv", "קובץ,תמלול\n{0}.wav,שלום\n"),
        ("m.psv", "file|text\n{0}|שלום\n"),
        ("m.tsv", '"path"\t"text"\n"{0}.wav"\t"שלום"\n'),
        ("m.csv", "sep=;\r\nשם קובץ;תמליל\r\n{0}.wav;שלום\r\n"),  # Excel
        ("m.json", '{{"{0}.wav": "שלום"}}'),
        ("m.json", '{{"version": 1, "data": [{{"audio": "{0}.wav", "text": "שלום"}}]}}'),
        ("m.csv", "ID,duration,wav,spk_id,wrd\na,1.5,$data_root/wavs/{0}.wav,dana,שלום\n"),  # SpeechBrain
        ("m.json", '{{"a": {{"wav": "{{data_root}}/wavs/{0}.wav", "length": 1.5, "wrd": "שלום"}}}}'),
        ("m.json", '[{{"audio": {{"path": "{0}.wav"}}, "text": "שלום"}}]'),
        ("m.json", '{{"audio_filepath": "wavs/{0}.wav", "text": "שלום", "duration": 1.5}}\n'),
        ("m.ndjson", '\ufeff{{"PATH": "wavs\\\\{0}.wav", "Text": null, "sentence": "שלום"}}\r\n'),
        ("metadata.csv", "file_name,text,sentence\n{0}.wav,,שלום\n"),
    ],
)
def test_common_shapes_of_listings(tmp_path, name, content):
    files(tmp_path, "wavs/LJ-1.wav")
    write(tmp_path / name, content.format("LJ-1"))
    for source in (tmp_path, tmp_path / name):
        (row,) = rows_of(source)
        assert (row.text, row.problem) == ("שלום", None)
        assert Path(str(row.audio)).samefile(tmp_path / "wavs" / "LJ-1.wav")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1255"])
@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_encodings_of_listings_are_read_or_told(tmp_path, encoding, name):
    """A byte order mark says how to read a file; without one nothing is guessed."""
    files(tmp_path, "a.wav")
    listing = {"m.jsonl": '{"audio": "a.wav", "text": "שלום"}\n', "m.csv": "path,text\na.wav,שלום\n"}[name]
    write(tmp_path / name, listing, encoding)
    if encoding in ("utf-16", "utf-32"):
        assert [row.text for row in rows_of(tmp_path)] == ["שלום"]
    else:
        named = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
        with pytest.raises(DataError, match=rf"{name}.*iconv -f {named} "):
            open_source(str(tmp_path))


def test_rows_that_are_wrong_are_named_one_by_one(tmp_path):
    files(tmp_path, "good.wav", "other.wav", "empty.wav", "unlisted.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    lines = [
        {"id": 0, "audio": "good.wav", "text": "שלום"},
        {"id": 0, "audio": "other.wav", "text": "שלום"},  # its id is taken, its recording is not
        {"audio": "good.wav", "text": "אחר", "id": 0},
        {"audio": "gone.wav", "text": "שלום"},
        {"audio": "x" * 5000 + ".wav", "text": "שלום"},
        {"audio": "pipe.wav", "text": "שלום"},
        {"audio": "folder.wav", "text": "שלום"},
        {"audio": "empty.wav", "text": "שלום"},
        *({"audio": f"good{sign}.wav", "text": "שלום"} for sign in ("\0", "\ud800")),
        {"text": "שלום"},
        *({"audio": "good.wav", **times, "text": "שלום"} for times in ({"start": 2, "end": 1}, {"start": -1})),
        *({"audio": "good.wav", "offset": time, "text": "שלום"} for time in ("soon", float("nan"), "inf", [1])),
        *({"audio": "good.wav", "offset": 1, "duration": time, "text": "שלום"} for time in ("soon", -1, 0, [1])),
        *({"audio": "good.wav", "text": text} for text in (["שלום"], {"he": "שלום"}, True)),
    ]
    written = "".join(f"{json.dumps(line)}\n" for line in lines)
    write(tmp_path / "clips.jsonl", written + "{nonsense\n" + '"text"\n')
    rows = rows_of(tmp_path)
    assert [row.id for row in rows if not row.problem] == ["0 (clips.jsonl, line 2)"]
    found = [row.problem[0] for row in rows if row.problem]
    assert found[:2] == ["listed with two texts"] * 2 and found.count("no audio file") == 6
    assert found.count("malformed times") == 10 and found.count("malformed line") == 6
    assert found[-1] == "not in the listing" and rows[-1].id == "unlisted.wav"
    assert "empty audio file" in found and len(rows) == len(lines) + 3


def test_a_listing_may_write_case_and_accents_in_another_way(tmp_path):
    """As macOS, which takes accents apart, and Windows, which knows no case, do; but two such names are nobody's."""
    files(tmp_path, "wavs/re\u0301sume\u0301.wav", "b.WAV", "C.wav", "c.WAV", "d.flac")
    names = ("r\u00e9sum\u00e9.wav", "b.wav", "c.wav", "d.wav", "x" * 5000, "no\0/x.wav")
    write(tmp_path / "m.jsonl", "".join(f"{json.dumps({'audio': name, 'text': 'שלום'})}\n" for name in names))
    rows = rows_of(tmp_path)
    assert [Path(str(row.audio)).name for row in rows if not row.problem] == ["re\u0301sume\u0301.wav", "b.WAV"]
    assert [row.problem[0] for row in rows if row.problem] == ["no audio file"] * 4 + ["not in the listing"] * 3


@pytest.mark.parametrize(
    "name",
    [
        *(
            "C:\\Users\\me\\in\\a b.wav",
            "D:/in/a b.wav",
            "/data/upload/in/a b.wav",
            "/data/local-files/?d=x/in/a b.wav",
        ),
        *(
            "file:///x/in/a%20b.wav",
            "https://host:80/in/a%20b.wav",
            "in/a%20b.wav",
            "\u200fin/a b.wav\u200f",
            "IN/../in/A B.WAV",
        ),
        *("SET/in/a b.wav", "up/SET/in/a b.wav"),
    ],
)
def test_a_recording_is_found_by_what_other_programs_and_machines_call_it(tmp_path, name):
    folder = files(tmp_path / "up" / "SET", "in/a b.wav", "IN/x.txt")
    write(folder / "m.jsonl", json.dumps({"audio": name, "text": "שלום"}))
    (row,) = rows_of(folder)
    assert not row.problem and Path(str(row.audio)).samefile(folder / "in/a b.wav")


def test_a_folder_is_read_once_however_many_recordings_of_another_machine_are_not_in_it(tmp_path):
    gone = "".join(f"/a/b/c/corpora/hebrew/clips/{number}.wav,שלום\n" for number in range(20))
    write(files(tmp_path, "clips/a.wav") / "m.csv", f"path,text\n/a/b/c/corpora/hebrew/clips/a.wav,שלום\n{gone}")
    read: list[str] = []
    is_open = [True]
    sys.addaudithook(
        lambda event, told: read.append(str(told[0])) if event in ("os.listdir", "os.scandir") and is_open else None
    )
    rows = rows_of(tmp_path / "m.csv")
    is_open.clear()  # a hook stays until the process ends
    assert len(problems_of(rows)) == 20 and read.count(str(tmp_path / "clips")) == 1


@pytest.mark.parametrize("name", ["txt/שלום.txt", "a.TXT", "C:\\my texts\\a.srt"])
def test_the_name_of_a_text_is_not_what_is_said(tmp_path, name):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "m.csv", f"audio,text\na.wav,{name}\nb.wav,כתבתי ל a.txt\n")
    named, said = rows_of(tmp_path)
    assert named.problem is not None and named.problem[0] == "no text" and name in named.problem[1]
    assert said.text == "כתבתי ל a.txt" and not said.problem


def test_two_names_of_one_recording_are_one_recording(tmp_path):
    files(tmp_path, "a.wav")
    write(tmp_path / "m.csv", "audio,text\n/x/1/a.wav,אחת\n/x/2/a.wav,שתיים\n")
    assert {*problems_of(rows_of(tmp_path)).values()} == {"listed with two texts"}
    write(tmp_path / "m.csv", "audio,text,start,end\n/x/1/a.wav,אחת,0,1\n/x/2/a.wav,שתיים,1,2\n")
    assert not problems_of(rows_of(tmp_path))
    write(tmp_path / "m.csv", "audio,text\n/x/1/b.wav,אחת\n/x/a.wav,שתיים\n")
    assert problems_of(rows_of(tmp_path)) == {"/x/1/b.wav": "no audio file"}


def test_columns_in_hebrew_and_their_times(tmp_path):
    files(tmp_path, "a.wav")
    write(
        tmp_path / "m.csv", 'מלל,קובץ אודיו,זמן התחלה,זמן סיום\nאחת,a.wav,0:01,"00:00:04,250"\nשתיים,a.wav,0:05,0:09\n'
    )
    assert [(row.text, row.span_s) for row in rows_of(tmp_path)] == [("אחת", (1.0, 4.25)), ("שתיים", (5.0, 9.0))]
    write(tmp_path / "m.csv", "טקסט,קובץ,התחלה,סוף\nאחת,a.wav,00:00:01:12,00:00:04:05\n")
    (row,) = rows_of(tmp_path)
    assert row.problem == ("malformed times", "m.csv, line 2: התחלה is '00:00:01:12'"), "a fourth part counts frames"


@pytest.mark.parametrize(
    ("listing", "told"),
    [
        (
            "קובץ,טקסט,זמן התחלה,סוף\na.wav,אחת,0,1500\na.wav,שתיים,2500,5900\n",
            "as if זמן התחלה and סוף were in milliseconds: write seconds",
        ),
        (
            "path,text,offset,duration\na.wav,אחת,0,1500\na.wav,שתיים,2500,3400\n",
            "as if offset and duration were in milli",
        ),
        ("path,text,from\na.wav,אחת,500\na.wav,שתיים,3000\n", "as if from were in milli"),
        (
            "path,text,start,end\na.wav,אחת,0,16000\na.wav,שתיים,40000,96000\n",
            "as if start and end were counted in samples",
        ),
    ],
)
def test_a_listing_whose_times_cannot_be_seconds_is_refused(tmp_path, listing, told):
    (tmp_path / "a.wav").write_bytes(corpora.speech(1, 6.0, "wav"))
    write(tmp_path / "m.csv", listing)
    with pytest.raises(DataError, match=rf"m\.csv: a stretch would end at .* a\.wav lasts 6\.0 s.*{told}"):
        rows_of(tmp_path)


def test_single_times_that_cannot_be_are_mistakes_of_their_rows(tmp_path):
    (tmp_path / "a.wav").write_bytes(corpora.speech(1, 6.0, "wav"))
    (tmp_path / "empty.wav").write_bytes(corpora.speech(1, 0.0, "wav"))
    files(tmp_path, "damaged.wav")
    times = "damaged.wav,אפס,500,900\nempty.wav,אפס,500,900\na.wav,אחת,0,1.5\na.wav,שתיים,2500,3400\na.wav,שלוש,4,5\n"
    write(tmp_path / "m.csv", f"path,text,start,end\n{times}")
    assert len(rows_of(tmp_path)) == 5 and not problems_of(rows_of(tmp_path))


def test_check_boxes_inside_a_listing_count_however_they_are_written(tmp_path):
    files(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav", "e.wav")
    boxes = [{"noisy": True}, json.dumps({"noisy": "true"}), json.dumps(json.dumps({"noisy": 1})), None, "{'noisy'"]
    lines = [
        {"audio": f"{name}.wav", "text": "שלום", "extra_data": box} for name, box in zip("abcde", boxes, strict=True)
    ]
    write(tmp_path / "clips.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    rows = rows_of(tmp_path)
    assert [row.flags for row in rows] == [("noisy",)] * 3 + [()] * 2
    assert problems_of(rows) == {"e.wav": "unreadable metadata"}


def test_stretches_of_a_file_are_cut_and_stay_together(tmp_path):
    files(tmp_path, "long.wav", "b.wav")
    lines = [
        {"audio_filepath": "long.wav", "offset": 1.0, "duration": 1.5, "text": "א", "id": 0},
        {"audio_filepath": "b.wav", "text": "ב", "duration": 2},
        {"audio_filepath": "long.wav", "start": "0:02.5", "end": "00:00:04", "text": "ג"},
        {"audio_filepath": "long.wav", "offset": 5, "duration": None, "text": "ד"},
    ]
    write(tmp_path / "manifest.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    rows = rows_of(tmp_path)
    assert [(row.id, row.span_s) for row in rows] == [
        ("0", (1.0, 2.5)),
        ("long.wav@2.5", (2.5, 4.0)),
        ("long.wav@5", (5.0, None)),
        ("b.wav", None),
    ]
    assert {row.groups for row in rows[:3]} == {("recording:long.wav",)} and rows[3].stated_duration_s == 2


@pytest.mark.parametrize("below", ["cv/he", "cv"])
def test_common_voice_takes_what_is_validated_and_keeps_its_tests_out(tmp_path, below):
    files(tmp_path, "cv/he/clips/a.mp3", "cv/he/clips/b.mp3", "cv/he/clips/c.mp3")
    head = "client_id\tpath\tsentence\n"
    for name, rows in {"train": "a", "test": "b", "dev": "", "validated": "ab", "other": "c"}.items():
        write(tmp_path / f"cv/he/{name}.tsv", head + "".join(f"s{r}\t{r}.mp3\tשלום\n" for r in rows))
    assert [row.id for row in rows_of(tmp_path / below, held_out=True)] == ["b.mp3"]
    kept = rows_of(tmp_path / below, held_out=False)
    assert [row.id for row in kept if not row.problem] == ["a.mp3", "b.mp3"]
    assert list(problems_of(kept).values()) == ["not in the listing"]


@pytest.mark.parametrize("form", ["{}.jsonl", "{}_manifest.json", "he-{}.jsonl"])
def test_a_listing_of_each_split(tmp_path, form):
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    for split, name in {"train": "a", "test": "b", "validation": "c"}.items():
        write(tmp_path / form.format(split), f'{{"audio_filepath": "{name}.wav", "text": "שלום", "duration": 1.5}}\n')
    assert [row.id for row in rows_of(tmp_path, held_out=False)] == ["a.wav"]
    assert [row.id for row in rows_of(tmp_path, held_out=True)] == ["b.wav", "c.wav"]
    for name in ("train-2", "more"):
        other = tmp_path / form.format("train").replace("train", name)
        write(other, '{"audio": "a.wav", "text": "x"}\n')
        with pytest.raises(DataError, match="several listings"):
            rows_of(tmp_path)
        other.unlink()


def test_a_listing_in_each_folder_of_a_split(tmp_path):
    """As `load_dataset("audiofolder")` has it: equal names in two folders are two recordings."""
    names = ("data/train/1.wav", "data/train/2.wav", "data/test/1.wav", "data/test/9.wav")
    files(tmp_path, *names)
    for split, listed in (("train", (1, 2)), ("test", (1,))):
        lines = [json.dumps({"file_name": f"{i}.wav", "text": f"שלום {split} {i}"}) for i in listed]
        write(tmp_path / "data" / split / "metadata.jsonl", "\n".join(lines))
    trained = [row for row in rows_of(tmp_path, held_out=False) if not row.problem]
    assert {row.id: row.text for row in trained} == {names[0]: "שלום train 1", names[1]: "שלום train 2"}
    assert not any(row.groups for row in trained)
    tested = rows_of(tmp_path, held_out=True)
    assert [(row.id, row.audio) for row in tested if not row.problem] == [(names[2], str(tmp_path / names[2]))]
    assert problems_of(rows_of(tmp_path)) == {names[3]: "not in the listing"}


def test_a_listing_in_each_folder_of_a_speaker(tmp_path):
    files(tmp_path, *(f"{who}/wavs/{i}.wav" for who in ("dana", "gil") for i in (1, 2)))
    for who in ("dana", "gil"):
        write(tmp_path / who / "metadata.csv", f"1|שלום {who}|שלום {who}\n2|אני|אני\n")
    rows = rows_of(tmp_path)
    assert [(row.id, row.groups) for row in rows] == [
        (f"{who}/{i}", (f"session:{who}",)) for who in ("dana", "gil") for i in (1, 2)
    ]
    assert [row.audio for row in rows[:2]] == [str(tmp_path / "dana" / "wavs" / f"{i}.wav") for i in (1, 2)]


def test_kaldi(tmp_path):
    data = tmp_path / "exp" / "data" / "train"
    files(tmp_path / "exp", "wav/r1.wav")
    write(data / "wav.scp", f"r1 wav/r1.wav\nr2 sox {tmp_path}/x.wav -t wav - |\nr3 a.ark:17\nr4 gone.wav\n")
    write(
        data / "segments",
        "u1 r1 0.5 2.25\nu2 r1 3 -1\nu3 r2 0 1\nu4 r3 0 1\nu5 r4 0 1\nu6 r1 4 3\nu7 r9 0 1\nu8 r1 6 7\nu9 r1 nan 7\n",
    )
    write(data / "text", "u1 שלום  לכם\nu2 עולם\n" + "".join(f"u{i} כן\n" for i in (3, 4, 5, 6, 7, 9)) + "lost שלום\n")
    write(data / "utt2spk", "u1 dana\nu2 noam\n")
    rows = rows_of(data)
    good = [row for row in rows if not row.problem]
    assert [(row.id, row.text, row.span_s) for row in good] == [
        ("u1", "שלום  לכם", (0.5, 2.25)),
        ("u2", "עולם", (3.0, None)),
    ]
    assert good[0].groups == ("speaker:dana", "recording:r1")
    assert Path(str(good[0].audio)).samefile(tmp_path / "exp/wav/r1.wav")
    assert problems_of(rows) == {
        "u3": "a command, not a file",
        "u4": "an archive, not a file",
        "u5": "no audio file",
        "u6": "malformed times",
        "u7": "no recording",
        "u8": "no text",
        "u9": "malformed times",
        "lost": "no recording",
    }


def test_tables_of_kaldi_in_folders_below_and_which_of_them_are_tests(tmp_path):
    files(tmp_path, "wavs/a.wav", "wavs/b.wav", "wavs/c.wav")
    for name, part in (("a", "train"), ("b", "test")):
        write(tmp_path / "data" / part / "wav.scp", f"{name} wavs/{name}.wav\n")
        write(tmp_path / "data" / part / "text", f"{name} שלום\n")
    rows = {row.id: row for row in rows_of(tmp_path, held_out=False)}
    assert rows["data/train/a"].text == "שלום" and rows["wavs/c.wav"].problem[0] == "not in the listing"
    assert [row.id for row in rows_of(tmp_path, held_out=True)] == ["data/test/b"]


def test_one_listing_of_folders_of_which_some_are_tests(tmp_path):
    files(tmp_path, "train/a.wav", "test/b.wav")
    write(tmp_path / "metadata.csv", "file_name,transcription\ntrain/a.wav,אחת\ntest/b.wav,שתיים\n")
    assert [row.id for row in rows_of(tmp_path, held_out=False)] == ["train/a.wav"]
    assert [row.id for row in rows_of(tmp_path, held_out=True)] == ["test/b.wav"]


# -- texts beside recordings


@pytest.mark.parametrize("more", [{}, {"segments": []}, {"language": "he", "words": None, "duration": 1.5}])
def test_what_a_recognizer_says_without_times(tmp_path, more):
    """As OpenAI's json has it."""
    files(tmp_path, "a.wav")
    write(tmp_path / "a.json", json.dumps({"text": "דובר 1: שלום", **more}))
    (row,) = rows_of(tmp_path)
    assert (row.text, row.timing, row.problem) == ("שלום", None, None)


def test_segments_of_whisper_cpp(tmp_path):
    files(tmp_path, "a.wav")
    said = [{"timestamps": {"from": "00:00:01,000"}, "offsets": {"from": 1000, "to": 2500}, "text": " שלום"}]
    write(tmp_path / "a.json", json.dumps({"systeminfo": "", "result": {"language": "he"}, "transcription": said}))
    (row,) = rows_of(tmp_path)
    assert row.timing is not None and row.timing.segments == (Segment(1.0, 2.5, "שלום"),)


def test_segments_that_keep_the_suffix_of_their_recording(tmp_path):
    """As whisper.cpp names its files."""
    files(tmp_path, "a.wav", "b.mp3")
    for name in ("a.wav.json", "b.mp3.json"):
        write(tmp_path / name, '{"transcription": [{"offsets": {"from": 500, "to": 1500}, "text": " שלום"}]}')
    assert [row.timing.segments for row in rows_of(tmp_path)] == [(Segment(0.5, 1.5, "שלום"),)] * 2


def test_a_text_of_the_very_name_of_a_recording_is_its_own(tmp_path):
    names = ("ep1.he", "ep1.en", "talk.ts")
    files(tmp_path, *(f"{name}.wav" for name in names))
    for name in names:
        write(tmp_path / f"{name}.txt", f"שלום {name}")
    assert {row.id: row.text for row in rows_of(tmp_path)} == {f"{name}.wav": f"שלום {name}" for name in names}


def test_who_speaks_is_not_learned_as_what_is_said(tmp_path):
    files(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav", "e.wav")
    write(tmp_path / "a.txt", "דובר 1: שלום\n\u200fדוברת ב': מה שלומך\nSpeaker A: טוב\nהדובר אמר: כן\n")
    write(tmp_path / "d.txt", "[דובר 2]: שלום\n- [יוסי כהן]: טוב\n(דוברת א'): כן\n[SPEAKER_00] : לא\nיוסי: בוא\n")
    write(tmp_path / "b.srt", "1\n00:00:00,000 --> 00:00:01,000\nSPEAKER_01: שלום\n")
    write(tmp_path / "c.vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\n[SPEAKER_00]: דובר ערבית: אחד\n")
    write(tmp_path / "list.txt", "e\tדובר 1: שלום\n")
    texts = [row.text for row in rows_of(tmp_path)]
    of_d = "שלום\nטוב\nכן\nלא\nיוסי: בוא\n"
    assert texts == ["שלום\nמה שלומך\nטוב\nהדובר אמר: כן\n", "שלום", "דובר ערבית: אחד", of_d, "שלום"]
    files(tmp_path / "listed", "a.wav", "b.wav")
    write(tmp_path / "listed" / "m.csv", "audio,text\na.wav,SPEAKER_01: שלום\nb.wav,הדובר אמר: כן\n")
    assert [row.text for row in rows_of(tmp_path / "listed")] == ["שלום", "הדובר אמר: כן"]


def test_signs_that_pages_write_as_names_are_not_learned_so(tmp_path):
    written = "&quot;צה&#34;ל&quot; &amp; R&D&nbsp;&#x5e9; AT&T &כן; &unknown; 1&2;"
    said = '"צה"ל" & R&D\xa0ש AT&T &כן; &unknown; 1&2;'
    files(tmp_path, "a.wav", "listed/b.wav")
    write(tmp_path / "a.txt", written)
    write(tmp_path / "listed/m.tsv", f"path\ttext\nb.wav\t{written}\n")
    assert rows_of(tmp_path)[0].text == rows_of(tmp_path / "listed")[0].text == said


def test_it_is_told_how_many_lines_begin_with_bare_names(tmp_path):
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    write(tmp_path / "a.txt", 'יוסי: שלום\nד"ר כהן : טוב\nד"ר כהן: אה\nיוסי כהן-לוי: כן\nהוא אמר: לא\nב-10:30 בבוקר\n')
    write(tmp_path / "b.srt", "1\n00:00:00,000 --> 00:00:01,000\nיוסי: בוא\n\n2\n00:00:01,000 --> 00:00:02,000\nכן\n")
    write(tmp_path / "c.txt", "דובר 1: שלום\nדובר 1: כן")
    (note,) = open_source(str(tmp_path)).notes
    assert "4 of 10 lines" in note and "[יוסי]:" in note
    write(tmp_path / "a.txt", "שלום")
    assert not open_source(str(tmp_path)).notes


@pytest.mark.timeout(10)
def test_many_empty_lines_take_no_time(tmp_path):
    files(tmp_path, "a.wav")
    write(tmp_path / "a.txt", "שלום" + "\n" * 20_000 + "עולם")
    assert [row.text.split() for row in rows_of(tmp_path)] == [["שלום", "עולם"]]


def test_a_text_that_differs_by_case_alone_is_found(tmp_path):
    files(tmp_path, "A.WAV", "b.wav", "B.flac", "x.m4a")
    write(tmp_path / "a.txt", "שלום")
    write(tmp_path / "x.iw-orig.vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\nאחת\n")
    rows = {row.id: row for row in rows_of(tmp_path)}
    assert rows["A.WAV"].text == "שלום" and rows["x.m4a"].text == "אחת" and "a.txt" not in rows
    write(tmp_path / "B.Txt", "שתיים")
    rows = {row.id: row for row in rows_of(tmp_path)}
    assert rows["B.flac"].text == "שתיים" and rows["b.wav"].problem[0] == "no text"


def test_every_recording_is_taken_or_named(tmp_path):
    suffixes = "wav flac mp3 ogg opus m4a mp4 webm mkv mov aac wma amr aiff caf oga mka"
    suffixes = suffixes.split()
    for number, suffix in enumerate(suffixes):
        files(tmp_path, f"r{number}.{suffix.upper() if number % 2 else suffix}")
        write(tmp_path / f"r{number}.TXT", "שלום")
    files(tmp_path, "._r0.flac", ".trash/x.wav", "__MACOSX/r0.wav", "silent.wav", "r0.mp3", "notes.pdf")
    write(tmp_path / "alone.txt", "שלום")
    write(tmp_path / "win.txt", "שלום", "cp1255")
    files(tmp_path, "win.wav")
    rows = rows_of(tmp_path)
    assert len([row for row in rows if not row.problem]) == len(suffixes)
    assert problems_of(rows) == {
        "r0.mp3": "recorded in two files",
        "silent.wav": "no text",
        "alone.txt": "no recording",
        "win.wav": "unreadable text",
    }
    files(tmp_path, *(f"notes.x{number}" for number in range(9)))
    assert any("and 2 other kinds" in note for note in open_source(str(tmp_path)).notes)
    assert any("1 .pdf" in note for note in open_source(str(tmp_path)).notes)


def test_linked_folders_are_followed_once(tmp_path):
    data, store = tmp_path / "data", tmp_path / "store"
    for place in (data / "spk0", store / "spk1", store / "spk2"):
        corpora.write_pairs(place, {"a.wav": (b"1", "שלום")})
    for name in ("spk1", "spk2"):
        (data / name).symlink_to(f"../store/{name}")
    (data / "again").symlink_to(data)
    (data / "spk0" / "up").symlink_to("..")
    (data / "spk0" / "b.wav").symlink_to(store / "spk1" / "a.wav")
    (data / "spk0" / "b.txt").symlink_to(store / "spk1" / "a.txt")
    (data / "spk0" / "nowhere").symlink_to("gone")
    (data / "spk0" / "itself").symlink_to("itself")  # whether that is a folder, the system does not say
    rows = rows_of(data)
    assert [(row.id, row.groups) for row in rows] == [
        ("spk0/a.wav", ("session:spk0",)),
        ("spk0/b.wav", ("session:spk0",)),
        ("spk1/a.wav", ("session:spk1",)),
        ("spk2/a.wav", ("session:spk2",)),
    ]


def test_groups_are_the_outermost_folders_that_differ(tmp_path):
    names = ("audio/train/dana/1/a.wav", "audio/train/dana/2/a.wav", "audio/train/noam/1/a.wav", "audio/test/x/1/a.wav")
    corpora.write_pairs(tmp_path, dict.fromkeys(names, (b"1", "שלום")))
    assert [row.groups for row in rows_of(tmp_path, held_out=False)] == [
        ("session:dana",),
        ("session:dana",),
        ("session:noam",),
    ]
    assert len(rows_of(tmp_path, held_out=True)) == 1


@pytest.mark.parametrize(
    ("recording", "text"),
    [
        ("wav/a.he.wav", "txt/a.he.txt"),
        ("wav/a.wav", "txt/a.he.txt"),
        ("wav/a_he.wav", "srt/a.txt"),
        ("a.wav", "he/a.txt"),
        ("audio_he/a.wav", "transcripts_he/a.txt"),
        ("a.wav", "a_he.txt"),
        ("a.wav", "a-heb.txt"),
    ],
)
def test_a_text_may_name_its_language_or_its_folder_may(tmp_path, recording, text):
    files(tmp_path, recording)
    write(tmp_path / text, "שלום")
    write(tmp_path / text.replace("he", "en").replace("/a.txt", "/a.en.txt"), "hello")
    assert [row.text for row in rows_of(tmp_path) if not row.problem] == ["שלום"]


def test_names_with_accents_taken_apart_and_with_languages(tmp_path):
    files(tmp_path, "re\u0301sume\u0301.wav", "talk.mp4", "x.wav")
    write(tmp_path / "r\u00e9sum\u00e9.txt", "שלום")
    write(tmp_path / "talk.he.srt", "1\n00:00:01,000 --> 00:00:02,000\nשלום\n")
    write(tmp_path / "x.wav.txt", "שלום")
    rows = rows_of(tmp_path)
    assert not problems_of(rows) and [row.text for row in rows] == ["שלום"] * 3


def test_timed_texts_become_segments_of_their_recording(tmp_path):
    files(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    write(tmp_path / "a.srt", "1\n00:00:01,000 --> 00:00:02,000\nשלום\n")
    write(tmp_path / "a.txt", "this is not read")
    write(tmp_path / "b.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nשלום\n")
    write(tmp_path / "c.TextGrid", textgrid(("text", [(0, 1, ""), (1, 2, "שלום")])), "utf-16")
    write(tmp_path / "d.srt", "no times at all\n")
    rows = rows_of(tmp_path)
    for row in rows[:3]:
        assert row.timing is not None and row.timing.segments == (Segment(1.0, 2.0, "שלום"),)
        assert row.text == "שלום" and row.groups == (f"recording:{row.id}",)
    assert problems_of(rows) == {"d.wav": "unreadable text"}


SRT = """\ufeff1\r
\u200f00:00:00,500 --> 00:00:02,000\u200f X1:100 X2:200\r
<i>שלום</i> {\\an8}<font color="red">לכם</font>\r
- שורה שנייה\u200f\r
\r
2\r
0:00:02.500 --> 00:00:03,5\r
\r
3\r
00:03 --> 00:04\r
AT&amp;T &lt;3\r
4\r
00:00:05,000 -> 00:00:06,000\r
[מוזיקה]\r
\r
5\r
01:00:00,000 --> 01:00:01,000\r
שעה\r
"""
VTT = """WEBVTT - title

STYLE
::cue { color: red }

NOTE 00:00:00 is no cue
and this is a comment

intro
00:00.500 --> 00:02.000 align:start position:0%
<v Dana>שלום <c.loud>לכם</c></v>
&nbsp;שורה שנייה

00:02.500 --> 00:03.500

2
00:03.000 --> 00:04.000
AT&amp;T &lt;3

00:05.000 --> 00:06.000
♪ לה לה ♪

01:00:00.000 --> 01:00:01.000
שעה
"""


@pytest.mark.parametrize("text", [SRT, VTT, VTT.replace("\n", "\r\n")])
def test_subtitles_as_they_are(text):
    cues = parse_subtitles(text.replace("\r\n", "\n"))
    assert [(cue.start_s, cue.end_s, cue.text) for cue in cues if not cue.fault] == [
        (0.5, 2.0, "שלום לכם שורה שנייה"),
        (3.0, 4.0, "AT&T <3"),
        (3600.0, 3601.0, "שעה"),
    ]
    assert [cue.start_s for cue in cues if cue.fault == "not speech"] == [5.0]


def test_subtitles_of_youtube_studio_are_read_and_those_that_are_not_are_told(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    write(
        tmp_path / "a.sbv", "0:00:00.500,0:00:02.000\nשלום לכם,\nמה שלומכם\n\n0:00:02.000,1:00:03.250\nב-10:30,11:30\n"
    )
    write(tmp_path / "b.ass", "[Events]\nDialogue: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,שלום\n")
    read, other = rows_of(tmp_path)
    assert read.timing and read.timing.segments == (
        Segment(0.5, 2.0, "שלום לכם, מה שלומכם"),
        Segment(2.0, 3603.25, "ב-10:30,11:30"),
    )
    assert other.problem and "ffmpeg -i NAME.ass NAME.srt" in " ".join(open_source(str(tmp_path)).notes)


def test_captions_that_roll_say_each_line_once():
    """As YouTube writes them: a cue of a line as it comes, word by word, and the line before above it."""
    text = (
        "WEBVTT\n\n00:00.000 --> 00:02.000\n \nשלום<00:00:01.000><c> לכם</c>\n\n"
        "00:02.000 --> 00:02.010\nשלום לכם\n \n\n"
        "00:02.010 --> 00:04.000\nשלום לכם\nמה<00:00:03.000><c> שלומכם</c>\n"
    )
    assert " ".join(cue.text for cue in parse_subtitles(text)) == "שלום לכם מה שלומכם"


def textgrid(*tiers: tuple[str, list[tuple[float, float, str]]], short: bool = False) -> str:
    """A TextGrid as Praat saves it, long or short."""

    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    if short:
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "9", "<exists>", str(len(tiers))]
        for name, intervals in tiers:
            lines += ['"IntervalTier"', quoted(name), "0", "9", str(len(intervals))]
            lines += [part for a, b, text in intervals for part in (str(a), str(b), quoted(text))]
        return "\n".join(lines)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", "xmax = 9 ", "tiers? <exists> "]
    lines += [f"size = {len(tiers) + 1} ", "item []: ", "    item [1]:", '        class = "TextTier" ']
    lines += ['        name = "bell" ', "        xmin = 0 ", "        xmax = 9 ", "        points: size = 1 "]
    lines += ["        points [1]:", "            number = 1.5 ", '            mark = "x" ']
    for number, (name, intervals) in enumerate(tiers, 2):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f"        name = {quoted(name)} "]
        lines += ["        xmin = 0 ", "        xmax = 9 ", f"        intervals: size = {len(intervals)} "]
        for at, (a, b, text) in enumerate(intervals, 1):
            lines += [f"        intervals [{at}]:", f"            xmin = {a} ", f"            xmax = {b} "]
            lines += [f"            text = {quoted(text)} "]
    return "\n".join(lines)


@pytest.mark.parametrize("short", [False, True])
def test_textgrids(short):
    said = [(0, 1.25, "sil"), (1.25, 2, 'אמר "שלום"\nלכם'), (2, 3, "spn"), (3, 4.5, "עולם"), (4.5, 9, "")]
    text = textgrid(("phones", [(0, 9, "S a")]), ("utterances", said), ("note", [(0, 9, "!")]), short=short)
    assert parse_textgrid(text) == [
        Segment(1.25, 2.0, 'אמר "שלום" לכם'),
        Segment(2.0, 3.0, "spn", "not speech"),
        Segment(3.0, 4.5, "עולם"),
    ]
    assert parse_textgrid(text.replace("ooTextFile", "ooTextFile short", 1)) == parse_textgrid(text)  # Praat 4
    with pytest.raises(ValueError, match="dana, noam"):
        parse_textgrid(textgrid(("dana", [(0, 1, "א")]), ("noam", [(1, 2, "ב")]), short=short))
    for broken in (text[: len(text) // 2], "", "hello", text.replace("IntervalTier", "IntervalTier\n", 1)[:200]):
        with pytest.raises(ValueError):
            parse_textgrid(broken)


ELAN = """<ANNOTATION_DOCUMENT><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="1000"/>
<TIME_SLOT TIME_SLOT_ID="b" {}/></TIME_ORDER><TIER TIER_ID="dana"><ANNOTATION>
<ALIGNABLE_ANNOTATION TIME_SLOT_REF1="a" TIME_SLOT_REF2="b"><ANNOTATION_VALUE>שלום</ANNOTATION_VALUE>
</ALIGNABLE_ANNOTATION></ANNOTATION></TIER><TIER TIER_ID="words" PARENT_REF="dana"><ANNOTATION>
<ALIGNABLE_ANNOTATION TIME_SLOT_REF1="a" TIME_SLOT_REF2="b"><ANNOTATION_VALUE>finer</ANNOTATION_VALUE>
</ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"""
LABELS = "1.000000\t2.000000\tשלום\n\\\t100.0\t900.0\n2.5\t2.5\t\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"text": "x", "segments": [{"id": 0, "start": 1, "end": 2.0, "text": " שלום"}]}'),
        ("a.json", '{"chunks": [{"timestamp": [1.0, 2.0], "text": "שלום"}]}'),
        ("a.JSON", '[{"start": 1, "end": 2, "text": "שלום"}]'),
        ("a.tsv", "start\tend\ttext\n1000\t2000\tשלום\n"),
        ("a.txt", LABELS),
        ("a.eaf", ELAN.format('TIME_VALUE="2000"')),
    ],
)
def test_times_that_other_tools_write(tmp_path, name, text):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / name, text)
    write(tmp_path / "b.txt", "שלום")
    a, b = rows_of(tmp_path)
    assert a.timing is not None and a.timing.segments == (Segment(1.0, 2.0, "שלום"),) and not b.timing
    assert open_source(str(tmp_path)).notes == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("a.json", text)
            for text in ("{}", "nothing", "[" * 10_000, '[{"start": 1, "end": null, "text": "ש"}]', "[3]")
        ),
        *(("a.tsv", text) for text in ("a\tb\n", "start\tend\ttext\nx\t2\tש\n", "")),
        *(("a.eaf", text) for text in ("<x", "<x/>", ELAN.format(""))),
        ("a.json", f'[{{"start": 1, "end": 2{"0" * 400}, "text": "ש"}}]'),
        ("a.srt", f"1\n00:00:01,000 --> 1{'0' * 400}:00:02,000\nש\n"),
    ],
)
def test_times_that_cannot_be_read_are_named_but_not_beside_a_plain_text(tmp_path, name, text):
    files(tmp_path, "a.wav")
    write(tmp_path / name, text)
    assert problems_of(rows_of(tmp_path)) == {"a.wav": "unreadable text"}
    if name not in ("a.eaf", "a.srt"):
        write(tmp_path / "a.txt", "שלום")
        assert [row.text for row in rows_of(tmp_path)] == ["שלום"]


@pytest.mark.parametrize("mark", [" ", "\t", "|", " | "])
def test_a_list_of_names_and_texts_is_read_and_its_other_lines_are_named(tmp_path, mark):
    """LibriSpeech, MLS and LJSpeech; a name that two recordings have is of neither, and a text beside comes first."""
    files(tmp_path, "s1/1-1.flac", "s1/1-2.flac", "s2/1-3.flac", "s2/own.flac", "s1/twice.wav", "s2/twice.wav")
    write(tmp_path / "s2/own.txt", "לבד")
    names = ("1-1", "1-2.flac", "s2/1-3", "1-1", "gone", "twice")
    write(tmp_path / "all.trans.txt", "".join(f"{name}{mark}שלום {name}\n" for name in names))
    write(tmp_path / "again.txt", "")
    write(tmp_path / "s2/z.txt", f"1-3{mark}אחרת\n")
    rows = rows_of(tmp_path)
    assert {row.id: row.text for row in rows if not row.problem} == {
        "s1/1-1.flac": "שלום 1-1",
        "s1/1-2.flac": "שלום 1-2.flac",
        "s2/1-3.flac": "שלום s2/1-3",
        "s2/own.flac": "לבד",
    }
    assert problems_of(rows) == {
        "all.trans.txt, line 4": "listed twice",
        "all.trans.txt, line 5": "no recording",
        "all.trans.txt, line 6": "no recording",
        "again.txt": "no recording",
        "s2/z.txt, line 1": "listed twice",
        "s1/twice.wav": "no text",
        "s2/twice.wav": "no text",
    }


def test_a_table_of_times_beside_a_list_of_texts_says_nothing_of_its_recordings(tmp_path):
    """MLS: segments.txt has the places of the clips in audiobooks."""
    files(tmp_path, "audio/1/2/1_2_a.flac", "audio/1/2/1_2_b.flac")
    times = "1_2_a\thttps://archive.org/x.mp3\t0.1\t9\n1_2_b\thttps://archive.org/x.mp3\t9\t12\n"
    write(tmp_path / "segments.txt", times)
    write(tmp_path / "transcripts.txt", "1_2_a\tשלום\n")
    rows = rows_of(tmp_path)
    assert problems_of(rows) == {"audio/1/2/1_2_b.flac": "no text", "segments.txt, line 2": "malformed line"}


def test_more_than_a_name_and_a_text_is_no_text(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "list.txt", "a\tשלום\tdana\nb\tשלום\n")
    assert problems_of(rows_of(tmp_path)) == {"a.wav": "no text", "list.txt, line 1": "malformed line"}


def test_texts_in_a_folder_of_their_own_are_found_where_they_can_be_no_others(tmp_path):
    files(tmp_path, "dana/wav/1.wav", "noam/wav/1.wav", "noam/audio/2.wav", "noam/clips/2.wav", "x/3.wav")
    for name in ("txt/dana/1.srt", "txt/noam/1.txt", "noam/txt/2.txt", "y/3.txt"):
        write(tmp_path / name, "1\n00:00:01,000 --> 00:00:02,000\nשלום\n" if name.endswith("srt") else name)
    rows = rows_of(tmp_path)
    assert {row.id: (row.text, row.groups[:1]) for row in rows if not row.problem} == {
        "dana/wav/1.wav": ("שלום", ("session:dana",)),
        "noam/wav/1.wav": ("txt/noam/1.txt", ("session:noam",)),
    }
    assert len(problems_of(rows)) == 5


def test_what_a_folder_holds_but_cannot_be_read_is_told(tmp_path):
    """A link that became a text, as git and archives leave it where there are none; a table of Excel's own."""
    corpora.write_pairs(tmp_path / "data", {"a.wav": (b"1", "שלום")})
    write(tmp_path / "data/dana", "../store/dana")
    files(tmp_path, "store/dana/b.wav", "data/list.xlsx", "data/README")
    told = " ".join(open_source(str(tmp_path / "data")).notes)
    assert "dana is a link to a folder" in told and "save them so" in told and "README is" not in told


@pytest.mark.timeout(20)
def test_a_cue_that_lies_under_all_others_takes_no_time():
    cues = [Segment(0.0, 90_000.0, "כתוביות"), *(Segment(i, i + 1.0, "שלום לכולם " * 9) for i in range(50_000))]
    (segment,) = from_cues(cues).segments
    assert segment.end_s == 90_000.0 and len(segment.text) > 50_000 * 90


def test_cues_that_overlap_become_one_segment():
    """No cut could part their words. What is rounding stays apart, and a cue without a length is in no clip."""
    cues = [
        Segment(4, 5, "ד"),
        Segment(0, 1.02, "א"),
        Segment(1, 2, "ב"),
        Segment(1.5, 3, "ג"),
        Segment(4, 5, "ד"),
        Segment(7, 6, "ה"),
        Segment(8, 9, "ו"),
    ]
    assert from_cues(cues).segments == (
        Segment(0, 1.02, "א"),
        Segment(1.02, 3, "ב ג"),
        Segment(4, 5, "ד"),
        Segment(7, 7, "ה", "ends before it starts"),
        Segment(8, 9, "ו"),
    )


@pytest.mark.parametrize(
    ("faulty", "at_s", "fault"),
    [
        (Segment(1, 1, "ד"), 2, "has no length"),
        (Segment(0, 0, "ד"), 0, "has no length"),
        (Segment(2, 2, "ד"), 2, "has no length"),
        (Segment(5, 3, "ד"), 6, "ends before it starts"),
        (Segment(-3, -1, "ד"), 0, "begins before the recording"),
    ],
)
def test_a_cue_without_a_length_leaves_the_cue_around_it(faulty, at_s, fault):
    """It stands behind it, where no clip reaches across it; what comes after overlaps the good cue alone."""
    good = [Segment(0, 2, "א"), Segment(4, 6, "ב"), Segment(5.98, 8, "ג")]
    found = from_cues([*good, faulty]).segments
    assert [segment for segment in found if not segment.fault] == [*good[:2], Segment(6, 8, "ג")]
    assert Segment(at_s, at_s, "ד", fault) in found
    times = [time for segment in found for time in (segment.start_s, segment.end_s)]
    assert times == sorted(times)


def test_a_cue_that_begins_before_its_recording_has_none_of_its_sound():
    """A TextGrid's times may begin anywhere; sound was cut from the recording's end, as Python counts."""
    found = from_cues([Segment(-9, -5, "א"), Segment(-5, 2, "ב"), Segment(2, 4, "ג"), Segment(4, 6, "ד")])
    assert found.segments[-2:] == (Segment(2, 4, "ג"), Segment(4, 6, "ד"))
    assert {part.fault for part in found.segments[:-2]} == {"begins before the recording"}
    cuts, unused = recut(found, 6.0, min_s=1.0, max_s=15.0)
    assert [(cut.start_s, cut.end_s, cut.text) for cut in cuts] == [(2.0, 6.0, "ג ד")] and len(unused) == 2
    assert from_cues([Segment(-0.02, 1, "א")]).segments == (Segment(0.0, 1, "א"),)  # a rounded zero


@pytest.mark.parametrize("written", ["NaN", "Infinity", "null", '"x"', "1e999"])
def test_times_that_are_no_numbers_are_told(tmp_path, written):
    write(tmp_path / "a.json", f'{{"segments": [{{"start": 0, "end": {written}, "text": "שלום"}}]}}')
    files(tmp_path, "a.wav")
    (row,) = rows_of(tmp_path)
    assert row.problem is not None and row.problem[0] == "unreadable text" and "segment 1" in row.problem[1]


def test_a_number_of_hundreds_of_digits_is_no_length(tmp_path):
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    many = "9" * 400
    lines = [f'{{"path": "a.wav", "transcription": "שלום", "num_samples": {many}}}']
    lines += ['{"path": "b.wav", "transcription": "שלום", "num_samples": 16000}']
    lines += [f'{{"path": "c.wav", "transcription": "שלום", "offset": {many}}}']
    rows = {row.id: row for row in rows_of(write(tmp_path / "m.jsonl", "\n".join(lines)))}
    assert [rows[name].stated_duration_s for name in ("a.wav", "b.wav")] == [None, 1.0]
    problem = rows["c.wav"].problem
    assert problem and problem[0] == "malformed times" and len(problem[1]) < 150


@pytest.mark.parametrize(("name", "mark"), [("mine.csv", ","), ("mine.tsv", "\t")])
def test_two_columns_of_one_name_are_refused(tmp_path, name, mark):
    """Which of them holds the text nobody knows; columns that are not read, or have no name, may repeat."""
    folder = files(tmp_path, "a.wav")
    table = write(folder / name, f"path{mark}text{mark}Text{mark}{mark}\na.wav{mark}שלום{mark}אחר{mark}{mark}\n")
    with pytest.raises(DataError, match="two columns are called text"):
        rows_of(table)
    write(table, f"path{mark}text{mark}note{mark}note{mark}{mark}\na.wav{mark}שלום{mark}א{mark}ב{mark}{mark}\n")
    assert [row.text for row in rows_of(table)] == ["שלום"]


# -- times that are not read as times


SAID = "00:00:00,000 --> 00:00:02,000\nאחת\n\n2\n{}\nשתיים\n\n3\n00:00:04,000 --> 00:00:06,000\nשלוש\n"


@pytest.mark.parametrize(
    "times",
    [
        *("00:00:02,000 --> 00:00:04,0000", "00:00:02,000 --> ", "00:00:02,000 00:00:04,000", "00:00:02 00:00:04"),
        *("00:00:02,000 –> 00:00:04,000", "-00:00:02,000 --> 00:00:04,000", "[00:02.000] 00:04.000"),
        "00:00:02:12 --> 00:00:04:05",  # frames, of which there may be 24 in a second, or 30
    ],
)
def test_a_line_of_times_in_subtitles_that_is_none_is_named_and_its_words_go_nowhere(times):
    with pytest.raises(ValueError, match="line 5 is not two times"):
        parse_subtitles(SAID.format(times))


def test_words_behind_a_blank_line_belong_to_their_cue_and_notes_to_none():
    srt = "1\n00:00,0 --> 00:02,0\nאחת\n \nעוד\n\n2\n00:02,0 --> 00:04,0\n\n3\n00:05,0 --> 00:06,0\n7\n"
    assert [(cue.start_s, cue.text) for cue in parse_subtitles(srt)] == [(0.0, "אחת עוד"), (5.0, "7")]
    vtt = (
        "WEBVTT\n\nSTYLE\n::cue {}\n\nNOTE\n00:01.000 מתי\nעוד\n\nפתיחה\n00:00.000 --> 00:02.000\nאחת\n\nNOTE לא\n\n"
        "name\n00:02.0 --> 00:03.0\nשתיים\n\nname 2\n00:03.0 --> 00:04.0\n\nn 3\n00:04.0 --> 00:05.0\n<00:04.5>שלוש\n"
    )
    assert [cue.text for cue in parse_subtitles(vtt)] == ["אחת", "שתיים", "שלוש"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("1\n00:00:00,000 --> 00:00:02,000\nאחת\n", r"call it \.srt"),
        ("[00:00.000 --> 00:02.000]  אחת\n", r"call it \.srt"),
        ("[00:00:00] אחת\n[00:00:02] שתיים\n", "2 of its 2 lines begin with times"),
        ("0:00\nאחת\n0:02\nשתיים\n", "2 of its 4 lines begin with times"),
        ("0.0\t2.0\tאחת\n2.0 4.0 שתיים\n4.0\t6.0\tשלוש\n", "3 of its 3 lines begin with times"),
        ("start\tend\n-0.1\t2\tאחת\n2\t4,5\tשתיים\n", "2 of its 3 lines begin with times"),
        (r"{\rtf1\ansi אחת}", "it is RTF"),
        ("<!DOCTYPE html>\n<p>אחת</p>", "it is HTML"),
    ],
)
def test_a_text_with_times_or_markup_is_named_not_learned(tmp_path, text, cause):
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    write(tmp_path / "a.txt", text)
    write(tmp_path / "b.txt", "12:30 בצהריים\nועוד שורה\nועוד אחת\n12:45 אחר כך\nוזהו\nבאמת\nסוף\n")
    write(tmp_path / "c.txt", "3 2 1\n5 4 אפס")
    unread, *plain = rows_of(tmp_path)
    assert unread.problem is not None and unread.problem[0] == "unreadable text"
    assert re.search(cause, unread.problem[1]) and not problems_of(plain)


@pytest.mark.parametrize("column", ["start_ms", "end ms", "start(ms)", "startTime", "segment_start", "end_samples"])
def test_times_that_a_listing_calls_otherwise_do_not_give_a_row_all_of_its_recording(tmp_path, column):
    files(tmp_path, "a.wav")
    write(tmp_path / "x.csv", f"audio,{column},text\na.wav,2000,שלום\n")
    with pytest.raises(DataError, match="times\\? Call them start and end, in seconds"):
        open_source(str(tmp_path))
    write(tmp_path / "x.csv", f"audio,{column},start_sec,end_sec,text\na.wav,2000,2,3.5,שלום\n")
    assert rows_of(tmp_path)[0].span_s == (2.0, 3.5)
    write(tmp_path / "x.csv", "audio,weekend,started by,text\na.wav,1,2,שלום\n")
    assert not problems_of(rows_of(tmp_path))


def test_a_recording_with_two_texts_has_none(tmp_path):
    files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "x.csv", "audio,text\na.wav,אחת\na.wav,שתיים\na.wav,אחת\nb.wav,שלוש\nb.wav,שלוש\n")
    rows = rows_of(tmp_path)
    assert [row.problem[0] if row.problem else "" for row in rows] == [
        *["listed with two texts"] * 3,
        *("", "listed twice"),
    ]


@pytest.mark.parametrize("table", ["wav.scp", "text", "segments"])
def test_a_table_of_kaldi_that_names_a_thing_twice_is_refused(tmp_path, table):
    files(tmp_path, "a.wav", "b.wav")
    tables = {"wav.scp": "r a.wav\n", "text": "u שלום\n", "segments": "u r 0 1\n"}
    more = {"wav.scp": "r b.wav\n", "text": "u עולם\n", "segments": "u r 1 2\n"}
    for name, content in tables.items():
        write(tmp_path / name, content * 2 + (more[name] if name == table else ""))
    with pytest.raises(DataError, match=f"{table} names [ru] twice"):
        open_source(str(tmp_path))
    write(tmp_path / table, tables[table] * 2)
    assert len(rows_of(tmp_path)) == 2, "a line twice says the same; b.wav is named by none"


def test_elan_in_any_encoding_and_a_shift_of_its_media(tmp_path):
    eaf = (
        '<?xml version="1.0" encoding="{}"?><ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR TIME_ORIGIN="{}"/></HEADER>'
        '<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="900"/>'
        '</TIME_ORDER><TIER><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="a" TIME_SLOT_REF2="b"><ANNOTATION_VALUE>'
        "שלום</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"
    )
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    write(tmp_path / "a.eaf", eaf.format("UTF-16", 0), "utf-16")
    write(tmp_path / "b.eaf", eaf.format("windows-1255", ""))
    write(tmp_path / "c.eaf", eaf.format("UTF-8", 3000))
    first, second, shifted = rows_of(tmp_path)
    assert (first.text, second.text, shifted.text) == ("שלום", "שלום", "")
    assert shifted.problem is not None and "TIME_ORIGIN 3000 ms" in shifted.problem[1]


def test_recordings_beside_parquet_are_told(tmp_path):
    pq.write_table(pa.table({"audio": [b"x"], "text": ["שלום"]}), tmp_path / "x.parquet")
    assert open_source(str(tmp_path)).notes == ()
    files(tmp_path, "a.wav", "in/b.MP3", "a.txt")
    assert open_source(str(tmp_path)).notes == ("its parquet files are read, and 2 recordings beside them are not",)


def test_a_table_in_parquet_may_name_recordings_beside_it(tmp_path):
    """`load_dataset("audiofolder")` reads metadata.parquet as it reads metadata.csv."""
    files(tmp_path, "train/clips/a.wav", "test/b.wav")
    for name in ("train/clips/a.wav", "test/b.wav"):
        table = {"file_name": [name.split("/", 1)[1]], "transcription": ["שלום"], "speaker_id": ["dana"]}
        pq.write_table(pa.table(table), tmp_path / name.split("/")[0] / "metadata.parquet")
    assert not open_source(str(tmp_path)).notes
    (test,), (row,) = (rows_of(tmp_path, held_out=held_out) for held_out in (True, False))
    assert (row.text, row.groups, row.problem) == ("שלום", ("speaker:dana",), None)
    assert row.audio_bytes() == b"train/clips/a.wav" and test.audio_bytes() == b"test/b.wav"
