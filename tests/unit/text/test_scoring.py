"""Figures of transcripts, files of anybody's transcripts, and the comparison of two systems."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest

from hebrew_asr.cli import main
from hebrew_asr.errors import DataError, HebrewASRError
from hebrew_asr.text.scoring import Transcript, comparison, figures
from hebrew_asr.text.sets import sets_of
from hebrew_asr.text.transcripts import as_json_lines, read_pairs
from hebrew_asr.text.wer import ErrorCounts, count_errors, paired_difference

PAIRS = [
    ("אבא בא הביתה", "אבא בא הביתה"),
    ("קניתי 3 תפוחים", "קניתי שלושה תפוחים"),
    ("שלחתי לו email אתמול", "שלחתי לו אימייל אתמול"),
    ("", "תודה רבה"),
]
DECLARATION = (
    "בארץ ישראל קם העם היהודי, בה עוצבה דמותו הרוחנית, הדתית והמדינית, בה חי חיי קוממיות ממלכתית, בה יצר "
    "נכסי תרבות לאומיים וכלל אנושיים והוריש לעולם כולו את ספר הספרים הנצחי. "
    "לאחר שהוגלה העם מארצו בכוח הזרוע שמר לה אמונים בכל ארצות פזוריו, ולא חדל מתפילה ומתקווה לשוב לארצו "
    "ולחדש בתוכה את חירותו המדינית. "
    "מתוך קשר היסטורי ומסורתי זה חתרו היהודים בכל דור לשוב ולהיאחז במולדתם העתיקה; ובדורות האחרונים שבו "
    "לארצם בהמונים, וחלוצים, מעפילים ומגינים הפריחו נשמות, החיו שפתם העברית, בנו כפרים וערים, והקימו "
    "יישוב גדל והולך השליט על משקו ותרבותו, שוחר שלום ומגן על עצמו, מביא ברכת הקידמה לכל תושבי הארץ ונושא "
    "נפשו לעצמאות ממלכתית. "
    "בשנת תרנ״ז נתכנס הקונגרס הציוני לקול קריאתו של הוגה חזון המדינה היהודית תאודור הרצל והכריז על זכות "
    "העם היהודי לתקומה לאומית בארצו. זכות זו הוכרה בהצהרת בלפור מיום ב׳ בנובמבר ואושרה במנדט מטעם חבר "
    "הלאומים, אשר נתן במיוחד תוקף בין לאומי לקשר ההיסטורי שבין העם היהודי לבין ארץ ישראל ולזכות העם "
    "היהודי להקים מחדש את ביתו הלאומי. "
)
"""How Israel's Declaration of Independence begins."""
CLIPS = [
    Transcript(f"c{i}", said, heard, f"speaker{i % 2}", "kan" if i < 2 else "d1", 1.0 + 9 * i)
    for i, (said, heard) in enumerate(PAIRS)
]


def test_word_information_lost_is_jiwers():
    for said, heard in [*PAIRS[:3], ("אבא בא", ""), ("א ב ג ד", "א ג ד ה ו")]:
        assert count_errors([said], [heard]).wil == pytest.approx(jiwer.process_words([said], [heard]).wil)
    assert (count_errors([""], ["אבא"]).wil, count_errors([""], [""]).wil) == (1.0, 0.0)


def test_every_mode_and_slice_is_counted_by_itself():
    found = figures(CLIPS)
    assert list(found["modes"]) == ["ivrit", "strict", "lenient"]
    for mode, rates in found["modes"].items():
        total = count_errors([c.reference for c in CLIPS], [c.hypothesis for c in CLIPS], mode)
        assert (rates["wer"], rates["cer"], rates["wil"]) == (total.wer, total.cer, total.wil)
        assert rates["wer_low_95"] <= rates["wer"] <= rates["wer_high_95"]
        assert rates["cer_low_95"] <= rates["cer"] <= rates["cer_high_95"]
        for parts in rates["slices"].values():
            assert sum(part["clips"] for part in parts.values()) == 4
            assert sum(part["words"] for part in parts.values()) == rates["words"]
        digits = rates["slices"]["digits"]["with digits"]
        assert (digits["clips"], digits["substitutions"]) == (1, 0 if mode == "lenient" else 1)
        assert rates["slices"]["code_switch"]["with Latin letters"]["clips"] == 1
        assert set(rates["slices"]["source"]) == {"kan", "d1"}
        assert list(rates["slices"]["duration"]) == ["0 to 2 s", "5 to 10 s", "10 to 20 s", "20 to 30 s"]
    assert found["invention"] == {"silent_clips": 1, "silent_clips_with_words": 1, "repetitive_hypotheses": 0}
    assert "2 groups" in found["interval"]
    loop = [Transcript("x", "שלום", "תותים " * 60)]
    assert figures(loop)["invention"]["repetitive_hypotheses"] == 1 and "over clips" in figures(loop)["interval"]


def test_a_long_text_is_not_taken_for_a_loop():
    """As a long recording's; UTF-8, with two bytes a letter of which one is always the same, compresses by 2.5."""
    for heard, is_loop in ((DECLARATION, False), ("תודה רבה " * 4, True), (f"{DECLARATION}{'אאאא' * 400}", True)):
        found = figures([Transcript("x", "שלום", heard)])["invention"]
        assert found["repetitive_hypotheses"] == is_loop
    assert figures([Transcript("x", "לא " * 8, "לא " * 8)])["invention"]["repetitive_hypotheses"] == 0, "it was said"


def test_clips_without_a_source_are_told_apart_by_the_data_set_that_their_ids_name():
    def slices(*ids: str) -> dict:
        mixed = [replace(clip, id=identity, source="") for clip, identity in zip(CLIPS, ids, strict=True)]
        return figures(mixed)["modes"]["strict"]["slices"]

    by_set = slices("kan/1", "d1/1", "kan/2", "kan/sub/3")["source"]
    assert {name: rates["clips"] for name, rates in by_set.items()} == {"d1": 1, "kan": 3}
    assert by_set["d1"]["wer"] == count_errors([CLIPS[1].reference], [CLIPS[1].hypothesis]).wer
    for ids in (["kan/1", "kan/2", "kan/3", "kan/4"], ["kan/1", "d1/1", "kan/2", "alone"]):
        assert "source" not in slices(*ids)
    assert sets_of([f"{number}/x" for number in range(21)]) is None, "names of speakers, perhaps"
    assert sets_of(["kan/1", "kan/2"]) is None and sets_of([]) is None


def test_the_paired_interval_is_of_the_same_clips():
    """B errs once less in each of 40 clips, which differ much: certain, though the rates' own intervals overlap."""
    rng = np.random.default_rng(0)
    first = [ErrorCounts(substitutions=int(k), words=20, clips=1) for k in rng.integers(1, 20, 40)]
    second = [ErrorCounts(substitutions=clip.substitutions - 1, words=20, clips=1) for clip in first]
    found = paired_difference(first, second, None)
    assert (found.wer, found.low, found.high) == pytest.approx((-0.05,) * 3) and found.share_better == 1
    groups = ["a"] * 20 + ["b"] * 20
    mixed = [*second[:20], *first[20:]]
    grouped = paired_difference(first, mixed, groups)
    assert (grouped.low, grouped.high) == pytest.approx((-0.05, 0), abs=1e-9)
    with pytest.raises(DataError, match="40 clips"):
        paired_difference(first, second[1:], None)


def test_compare_needs_the_same_clips(tmp_path, capfd):
    other = [*CLIPS[:-1], Transcript("c3", "", "", "speaker1", "d1", 28.0)]
    assert comparison(CLIPS, other)["modes"]["strict"]["difference"] < 0
    for name, clips in (("a", CLIPS), ("b", other), ("c", CLIPS[1:])):
        (tmp_path / f"{name}.jsonl").write_text(as_json_lines(clips), encoding="utf-8")
    a, b, c = (str(tmp_path / f"{name}.jsonl") for name in "abc")
    assert main(["compare", a, b]) == 0
    assert "strict" in (told := capfd.readouterr().out) and "points" in told
    assert main(["compare", a, b, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["modes"]["ivrit"]["clips"] == 4
    capfd.readouterr()
    for pair, told in (([a, c], "only the first has 1 of the clips (c0)"), ([c, a], "only the second has 1 of the")):
        assert main(["compare", *pair]) == 3
        assert told in capfd.readouterr().err
    with pytest.raises(DataError, match=r"2 of the clips differ in their references \(c1, c2\)"):
        comparison(CLIPS, [replace(clip, reference=clip.reference + "!" * (clip.id in "c1 c2")) for clip in CLIPS])


def test_clips_are_compared_by_their_ids():
    other = [replace(clip, hypothesis=clip.reference) for clip in CLIPS]
    assert comparison(CLIPS, other[::-1]) == comparison(CLIPS, other)


def written(folder: Path) -> list[tuple[Path, Path | None]]:
    """The same three pairs in every form that is read."""
    rows = [(f"c{i}", said, heard) for i, (said, heard) in enumerate(PAIRS[:3])]

    def lines(name: str, content: list[str], encoding: str = "utf-8") -> Path:
        (folder / name).write_bytes("".join(f"{line}\n" for line in content).encode(encoding))
        return folder / name

    def table(name: str, column: str, texts: list[int], delimiter: str = ",") -> Path:
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["file", column])
            writer.writerows([row[0], row[texts[0]]] for row in reversed(rows))
        return folder / name

    reference = lines("ref.jsonl", [json.dumps({"id": i, "text": r}) for i, r, _ in rows])
    by_id = lines("hyp.jsonl", [json.dumps({"clip_id": i, "pred_text": h}) for i, _, h in reversed(rows)])
    manifest = lines(
        "eval.jsonl",
        [json.dumps({"audio": f"clips/{i}.wav", "text": f"language Hebrew<asr_text>{r}"}) for i, r, _ in rows],
    )
    heard = lines("transcribed.jsonl", [json.dumps({"file": f"/elsewhere/{i}.flac", "text": h}) for i, _, h in rows])
    both = lines("both.jsonl", [json.dumps({"id": i, "reference": r, "hypothesis": h}) for i, r, h in rows])
    return [
        (lines("ref.txt", [r for _, r, _ in rows], "utf-8-sig"), lines("hyp.txt", [h for *_, h in rows])),
        (lines("ref2.txt", [f"{r}\r" for _, r, _ in rows]), folder / "hyp.txt"),
        (lines("wide.txt", [r for _, r, _ in rows], "utf-16"), folder / "hyp.txt"),
        (reference, by_id),
        (reference, table("hyp.csv", "hypothesis", [2])),
        (table("ref.tsv", "sentence", [1], "\t"), folder / "hyp.csv"),
        (manifest, heard),
        (both, None),
        (lines("array.json", json.dumps([{"id": i, "text": r} for i, r, _ in rows], indent=1).split("\n")), by_id),
        (lines("nemo.jsonl", [json.dumps({"text": r, "pred_text": h}) for _, r, h in rows]), None),
        (lines("ref.trn", [f"{r} ({i})" for i, r, _ in rows]), lines("hyp.trn", [f"{h}({i})" for i, _, h in rows])),
        (lines("text", [f"{i} {r}" for i, r, _ in rows]), by_id),
    ]


def test_anybodys_files_give_the_same_counts(tmp_path):
    said, heard = zip(*PAIRS[:3], strict=True)
    expected = count_errors(said, heard)
    for reference, hypothesis in written(tmp_path):
        clips = read_pairs(reference, hypothesis)
        assert count_errors([c.reference for c in clips], [c.hypothesis for c in clips]) == expected, reference


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1d", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("name", ["hyp.jsonl", "hyp.csv", "hyp.tsv", "hyp.trn", "text"])
def test_only_a_newline_ends_a_line(tmp_path, name, separator):
    """Python's splitlines also ends one at these, which subtitles and web pages hold within a text."""
    said = {"a": f"שלום{separator}עולם", "b": "ילד טוב"}
    of_line = {
        "hyp.jsonl": lambda key, text: json.dumps({"id": key, "text": text}, ensure_ascii=False),
        "hyp.csv": lambda key, text: f"{key},{text}",
        "hyp.tsv": lambda key, text: f"{key}\t{text}",
        "hyp.trn": lambda key, text: f"{text} ({key})",
        "text": lambda key, text: f"{key} {text}",
    }[name]
    head = {"hyp.csv": ["id,text"], "hyp.tsv": ["id\ttext"]}.get(name, [])
    lines = [*head, *(of_line(key, text) for key, text in said.items())]
    (tmp_path / "ref.jsonl").write_text("".join(f"{json.dumps({'id': k, 'text': t})}\n" for k, t in said.items()))
    (tmp_path / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    assert [clip.hypothesis for clip in read_pairs(tmp_path / "ref.jsonl", tmp_path / name)] == list(said.values())


def test_transcripts_of_files_find_their_clips_by_as_much_of_the_path_as_tells_them_apart(tmp_path):
    """As ``transcribe --json`` names what ``prepare`` called otherwise, in folders that hold the same names."""
    audio = [f"clips/{source}/00000/{number:06d}.flac" for source in "ab" for number in (0, 20)]
    rows = [{"audio": file, "id": f"{file[6]}/{int(file[-11:-5])}", "text": file} for file in audio]
    heard = [{"file": f"/data/my set/{file}", "text": file} for file in reversed(audio)]
    for name, content in (("ref.jsonl", rows), ("hyp.jsonl", heard), ("less.jsonl", heard[1:])):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in content))
    clips = read_pairs(tmp_path / "ref.jsonl", tmp_path / "hyp.jsonl")
    assert [clip.id for clip in clips] == ["a/0", "a/20", "b/0", "b/20"]
    assert all(clip.hypothesis == clip.reference for clip in clips)
    with pytest.raises(DataError, match=r"no hypothesis for 1 of 4 clips of .* \(b/20\)"):
        read_pairs(tmp_path / "ref.jsonl", tmp_path / "less.jsonl")


def test_a_quotation_mark_in_a_tsv_swallows_no_clip_and_one_that_excel_doubled_is_one(tmp_path):
    said = {"a": '"שלום', "b": 'עולם"', "c": 'ד"ר כהן', "d": 'צה"ל'}
    excel = said | {"c": '"ד""ר כהן"'}
    (tmp_path / "both.tsv").write_text("id\tref\thyp\n" + "".join(f"{i}\t{t}\t{t}\n" for i, t in excel.items()))
    with (tmp_path / "all.tsv").open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(
            [("id", "ref", "hyp"), *((i, t, t) for i, t in said.items())]
        )
    for name in ("both.tsv", "all.tsv"):
        clips = read_pairs(tmp_path / name, None)
        assert {clip.id: clip.reference for clip in clips} == {clip.id: clip.hypothesis for clip in clips} == said


@pytest.mark.parametrize("written", ["NaN", '"nan"', "-3", "0", '"long"', f"1{'0' * 400}", "Infinity"])
def test_what_is_no_length_of_a_clip_is_none(tmp_path, written):
    (tmp_path / "a.jsonl").write_text(f'{{"id": 1, "ref": "שלום", "hyp": "שלום", "duration_s": {written}}}\n')
    assert [clip.duration_s for clip in read_pairs(tmp_path / "a.jsonl", None)] == [None]


def test_a_table_with_semicolons_is_read(tmp_path):
    """As spreadsheets write it where a comma is the decimal sign."""
    (tmp_path / "ref.csv").write_text('id;text\na;"שלום, עולם"\n', encoding="utf-8")
    (clip,) = read_pairs(tmp_path / "ref.csv", tmp_path / "ref.csv")
    assert (clip.id, clip.reference) == ("a", "שלום, עולם")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "told"),
    [
        (("r.txt", "א\nב\n"), ("h.txt", "א\n"), "2 lines"),
        (("r.txt", "א\n"), ("h.jsonl", '{"id": 1, "text": "א"}\n'), "by line and one by id"),
        (("r.jsonl", '{"id": 1, "text": "א"}\n{"id": 2, "text": "ב"}\n'), ("h.jsonl", '{"id": 1, "text": "א"}\n'), "2"),
        (("r.jsonl", '{"id": 1, "text": "א"}\n{"id": 1, "text": "ב"}\n'), ("h.txt", "א\n"), "1 twice"),
        (("r.jsonl", '{"id": 1, "text": "א"\n'), ("h.txt", "א\n"), "line 1 is not JSON"),
        (("r.jsonl", "[1]\n"), ("h.txt", "א\n"), "no JSON object"),
        (("r.jsonl", '{"text": "א"}\n'), ("h.txt", "א\n"), "has no id"),
        (("r.jsonl", '{"id": 1}\n'), ("h.jsonl", '{"id": 1, "text": "א"}\n'), "none of reference"),
        (("r.csv", "id,text\n1,א,extra\n"), ("h.txt", "א\n"), "line 2 has another number"),
        (("r.docx", "א"), ("h.txt", "א\n"), "no kind of transcripts"),
        (("r.txt", ""), ("h.txt", "א\n"), "holds no transcripts"),
        (("r.jsonl", '{"id": 1, "text": 7}\n'), ("h.jsonl", '{"id": 1, "text": "א"}\n'), "is no text"),
        (("r.trn", "א (1)\nב\n"), ("h.txt", "א\n"), "line 2 has no id"),
        (("r.csv", "id,text,text\n1,א,ב\n"), ("h.csv", "id,text\n1,א\n"), "two columns of one name"),
    ],
)
def test_files_that_cannot_be_scored_are_told(tmp_path, capfd, reference, hypothesis, told):
    for name, content in (reference, hypothesis):
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(HebrewASRError, match=told):
        read_pairs(tmp_path / reference[0], tmp_path / hypothesis[0])
    assert main(["score", str(tmp_path / reference[0]), str(tmp_path / hypothesis[0])]) in (2, 3)
    assert "Traceback" not in capfd.readouterr().err


def test_text_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "r.txt").write_bytes("שלום".encode("cp1255"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_pairs(tmp_path / "r.txt", tmp_path / "r.txt")


def test_a_pipe_of_a_shell_is_read_and_a_device_is_not(tmp_path):
    (tmp_path / "r.txt").write_text("שלום\n", encoding="utf-8")
    piped, into = os.pipe()
    os.write(into, "שלום\n".encode())
    os.close(into)
    assert read_pairs(tmp_path / "r.txt", f"/dev/fd/{piped}")[0].hypothesis == "שלום"
    for name, told in (
        ("/dev/zero", "is not a file"),
        (tmp_path / "absent.txt", "No such file"),
        ("/dev", "no evaluation"),
    ):
        with pytest.raises(DataError, match=told):
            read_pairs(tmp_path / "r.txt", name)


def test_a_run_is_told_from_its_evaluations(tmp_path, capfd):
    run = tmp_path / "run"
    for name in ("metrics.jsonl", "samples/step-000002-eval.jsonl", "samples/step-000010-eval.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(as_json_lines(CLIPS), encoding="utf-8")
    assert main(["score", str(run)]) == 3
    told = capfd.readouterr().err
    assert f"{run} is a run" in told and f"hebrew-asr eval --model {run} --data MANIFEST --out heard" in told
    assert f"give {run}/samples/step-000010-eval.jsonl, or" in told
    assert main(["score", str(run / "samples" / "step-000010-eval.jsonl"), "--out", str(run / "heard")]) == 0
    assert main(["compare", str(run), str(run)]) == 3
    assert f"give {run}/heard or {run}/samples/step-000010-eval.jsonl, or" in capfd.readouterr().err


def test_score_writes_every_clip(tmp_path, capfd):
    (tmp_path / "all.jsonl").write_text(as_json_lines(CLIPS), encoding="utf-8")
    assert main(["score", str(tmp_path / "all.jsonl"), "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    of = dict.fromkeys(("reference", "hypothesis"), str(tmp_path / "all.jsonl"))
    assert (
        told == json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8")) == {**of, **figures(CLIPS)}
    )
    with (tmp_path / "out" / "clips.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["reference"] for row in rows] == [clip.reference for clip in CLIPS]
    strict = told["modes"]["strict"]
    assert sum(int(row["substitutions_strict"]) for row in rows) == strict["substitutions"]
    page = (tmp_path / "out" / "clips.html").read_text(encoding="utf-8")
    assert 'dir="rtl"' in page and "אימייל" in page and "<audio" not in page
    assert main(["score", str(tmp_path / "out")]) == 0
    assert f"{strict['wer']:.2%}" in capfd.readouterr().out
    (tmp_path / "other.jsonl").write_text(as_json_lines(CLIPS[:1]), encoding="utf-8")
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    for again, code in (("other.jsonl", 2), ("all.jsonl", 0)):
        assert main(["score", str(tmp_path / again), "--out", str(tmp_path / "out")]) == code
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == written, again
