"""The report: complete, true to the run's files, safe with any text, and there for a run in whatever state."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from hebrew_asr.cli import main
from hebrew_asr.errors import DataError
from hebrew_asr.pages.document import asset
from hebrew_asr.pages.markup import element
from hebrew_asr.pages.words import percent
from hebrew_asr.report.gather import read_run
from hebrew_asr.report.page import write_report
from hebrew_asr.report.records import EvalRecord, FaultRecord, Sample, from_row
from hebrew_asr.report.sinks import TensorBoardSink
from hebrew_asr.watching import live_page
from hebrew_asr.watching.live_page import LivePage
from tests.support.properties import examples
from tests.support.report_run import (
    HEARD,
    SENTENCES,
    eval_record,
    make_run,
    phase_record,
    train_record,
    write_data,
    write_metrics,
    write_samples,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


class Parsed(HTMLParser):
    """Tags in order, attributes, visible text, and whether every element is closed where it should be."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.text.setdefault(tag, []).append(data)

    def visible(self) -> str:
        return " ".join(" ".join(self.text["main"]).replace("\u202f", " ").replace("\u00a0", " ").split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def page_text(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def page_of(run: Path) -> Parsed:
    return Parsed(page_text(run))


def test_one_training_clip_is_a_clip(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"train_clips": 1}))
    assert "training data 1 clip 1.5 h of speech" in page_of(run).visible()


def test_a_finished_run_is_told_whole(run: Path) -> None:
    page = page_of(run)
    text = page.visible()
    assert not page.open
    assert f"{percent(eval_record(0, 'sample', HEARD[0])['wer'])} before training".replace("\u202f", " ") in text
    assert "20.0 % final, step 8, 4 clips" in text  # 3 edits in 15 words
    assert "the whole eval split (4 clips, 15 words), strict normalizer" in text
    assert "time 1 min 5 s 6 % of it in training steps" in text
    assert "clips/s 8 median step; audio at 16 × real time" in text
    assert "machine 2 GPUs GPU X, 2 ranks, ZeRO-2, fp32" in text
    assert "Phase A Strategy A train 75 75.0 % frozen, bit-equal 25 25.0 % looked at one by one 75" in text
    assert "of these, moved 74 74.0 %" in text
    assert "Proved on step 5, the phase's first." in text
    assert "the same substitutions, deletions and insertions as the run wrote down" in text
    titles = [title.split(" ")[0] for title in page.text["figcaption"] if title.strip() and title[0].isupper()]
    assert titles == ["WER", "WER", "CER", "Errors", "Loss", "Gradient", "Learning", "Throughput"]
    drawn = [attributes.get("class") for _, attributes in page.tags]
    assert drawn.count("switch") == 6 and drawn.count("checkpoint") == 12


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    text, page = write_report(run).read_text(encoding="utf-8"), page_of(run)
    assert "default-src 'none'" in str([attributes.get("content") for tag, attributes in page.tags if tag == "meta"])
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert not [tag for tag, attributes in page.tags if {"src", "href"} & attributes.keys() or tag == "link"]


def test_every_clip_is_listed_and_played_where_its_sound_is(run: Path) -> None:
    write_data(run, SENTENCES, lambda key: f"speaker {key}")
    sound = run.parent / "data" / "a.wav"
    sound.write_bytes(b"RIFF")
    page = page_of(run)
    rows = json.loads(next(text for text in page.text["div"] if text.startswith('[["')))
    assert [row[:2] for row in rows] == [[key, f"speaker {key}"] for key in HEARD[8]]
    assert [row[4:6] for row in rows] == [[SENTENCES[key], HEARD[8][key]] for key in HEARD[8]], "as written"
    assert sum(row[2] for row in rows) == 3 and [bool(row[6]) for row in rows] == [True, False, False, False]
    assert rows[0][6] == "../data/a.wav"
    players = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    assert players == ["../data/a.wav"] * len(players) and players, "beside its samples too"


def test_what_a_run_took_of_its_machines_is_drawn(run: Path) -> None:
    of_gpus = {"memory_gib": [3.0, 4.0], "reserved_gib": [5.0, 5.0], "power_w": [300.0, 310.0]}
    of_gpus |= {"utilization_percent": [90, 98]}
    records = [{"event": "machine", "step": step, "phase": "B", "host_gib": [2.0, 2.5], **of_gpus} for step in (2, 6)]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(lines + "".join(json.dumps(record) + "\n" for record in records))
    titles = [title.strip() for title in page_of(run).text["figcaption"] if title.startswith(("GPU", "Host"))]
    assert titles == ["GPU memory", "GPU power", "GPU utilization", "Host memory"]
    on_a_cpu = [{"event": "machine", "step": 2, "phase": "B", "host_gib": [2.0, 2.5]}]
    (run / "metrics.jsonl").write_text(lines + json.dumps(on_a_cpu[0]) + "\n")
    titles = [title.strip() for title in page_of(run).text["figcaption"] if title.startswith(("GPU", "Host"))]
    assert titles == ["Host memory"]


def test_training_has_the_page_written_by_another_process(run: Path, capsys, monkeypatch) -> None:
    """It loads itself anew until the run is finished; a page that is not written is a fault, once, and tried again."""
    monkeypatch.setattr(live_page, "_LAST_S", 300.0)  # its process has the lowest priority
    summary, faults = (run / "summary.json").read_text(), list[FaultRecord]()
    (run / "summary.json").unlink()
    page = LivePage(run, faults.append)
    assert str(run / "report.html") in capsys.readouterr().out
    page.write(FaultRecord(step=8, kind="fallback"))
    page.close()
    assert asset("live.js") in (run / "report.html").read_text()
    (run / "report.html").write_text("mine")
    for step in (8, 9):
        page.write(FaultRecord(step=step, kind="fallback"))
        page.close()
    (fault,) = faults
    assert (fault.step, fault.kind) == (8, "report") and "report.html exists and was not made by" in fault.reasons[0]
    assert (run / "report.html").read_text() == "mine"
    (run / "report.html").unlink()
    (run / "summary.json").write_text(summary)
    page.close()
    assert (run / "report.html").read_text() == page_text(run) and asset("live.js") not in page_text(run)


@examples(200)
@given(TEXT, TEXT)
def test_any_text_comes_back_as_text(text: str, value: str) -> None:
    page = Parsed(element("main", element("p", text, title=value)))
    assert [tag for tag, _ in page.tags] == ["main", "p"]
    replaced = str.maketrans({"\0": "\ufffd"})
    assert "".join(page.text.get("p", [])) == text.translate(replaced)
    assert page.tags[1][1]["title"] == value.translate(replaced)


def test_nothing_in_a_run_becomes_markup(run: Path) -> None:
    evil = "</td></script><script>alert(1)</script><img src=x onerror='a'>\"&amp;\u202e"
    rows = [
        {"id": evil, "reference": "שלום", "hypothesis": "<b>" + evil},
        {"id": "x", "reference": evil, "hypothesis": ""},
    ]
    samples = run / "samples" / "step-000008-eval.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    recipe["name"] = recipe["phases"][0]["title"] = evil
    (run / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    page = page_of(run)
    tags, scripts = [tag for tag, _ in page.tags], asset("cursor.js") + asset("clips.js")
    assert tags.count("script") == 1 and "".join(page.text["script"]).strip() == scripts.strip()
    assert not {"img", "b"} & {tag for tag, attributes in page.tags if "onerror" in attributes or tag == "img"}
    assert evil in "".join(page.text["h1"])


def test_a_lone_surrogate_does_not_stop_the_report(run: Path) -> None:
    (run / "recipe.json").write_text('{"name": "small\\ud800"}', encoding="utf-8")
    with (run / "samples" / "step-000008-eval.jsonl").open("a", encoding="utf-8") as samples:
        samples.write('{"id": "e", "reference": "\\udfff", "hypothesis": ""}\n')
    text = page_of(run).visible()
    assert "small? finished" in text and "1 line of step-000008-eval.jsonl could not be read" in text


def test_an_unfinished_run_with_a_torn_line(run: Path) -> None:
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    cut = next(index for index, line in enumerate(lines) if '"step": 6' in line)
    (run / "metrics.jsonl").write_text("\n".join([*lines[:cut], lines[cut][:40]]), encoding="utf-8")
    text = page_of(run).visible()
    assert "small unfinished" in text
    assert "The run has not ended: 5 of 8 steps are on record." in text
    assert "1 line of metrics.jsonl could not be read and is left out." in text
    assert "step 4, 4 clips" in text and "final" not in text.split("What trained")[0]


def test_faults_that_were_borne_are_told(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write(json.dumps(train_record(3, loss=float("nan"), grad_norm=None)) + "\n")
        metrics.write(json.dumps({"event": "fault", "step": 5, "kind": "non-finite", "clips": ["a"]}) + "\n")
        reasons = ["b: cut short", "c: no such file"]
        metrics.write(json.dumps({"event": "fault", "step": 5, "kind": "unreadable", "reasons": reasons}) + "\n")
        for name in ("decoding is slow", "AdamW is slow"):
            row = {
                "event": "fault",
                "step": 5,
                "kind": "fallback",
                "name": name,
                "reason": "CUDA said no",
                "ranks": [0],
            }
            metrics.write(json.dumps(row) + "\n")
        others = (
            {"kind": "unreadable", "split": "eval", "reasons": ["d: empty"]},
            {"kind": "checkpoint", "reasons": ["No space left"]},
            {"kind": "report", "reasons": ["not written"]},
            {"kind": "out-of-memory", "ranks": [1], "part": "backward", "batching": "8 clips at a time"},
        )
        metrics.writelines(json.dumps({"event": "fault", "step": 6, **other}) + "\n" for other in others)
    text = page_of(run).visible()
    assert "1 measured clip could not be decoded and counted as not heard; d: empty" in text
    assert "Step 6, checkpoint: No space left." in text and "Step 6: not written." in text
    assert "Since step 6: 8 clips at a time, as rank 1 ran out of memory in backward." in text
    assert "Since step 5: decoding is slow (CUDA said no)." in text and "AdamW is slow" in text
    assert "2 steps had a loss or gradients that were not finite, the first at step 3" in text
    assert "2 training clips could not be decoded and are left out; b: cut short" in text


def test_a_summary_of_an_earlier_shorter_run_does_not_count(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"steps": 6, "seconds": 10.0}), encoding="utf-8")
    assert "The run has not ended" in page_of(run).visible()


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    write_metrics(tmp_path, [])
    text = page_of(tmp_path).visible()
    assert "No evaluation yet" in text and "machine not on record" in text


def test_what_a_resumed_run_took_again_counts_once(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for record in (phase_record(6, "A"), train_record(7, loss=9.0), train_record(8)):
            metrics.write(json.dumps(record) + "\n")
    read = read_run(run)
    assert [step.step for step in read.steps] == list(range(1, 9))
    assert read.steps[6].loss == 9.0
    assert "Proved on step 5, the phase's first; again after 1 resume." in page_of(run).visible()


def test_a_proof_that_counted_whole_tensors_says_no_more_than_it_knows(run: Path) -> None:
    record = {key: value for key, value in phase_record(4, "A").items() if key != "compared"}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write(json.dumps(record) + "\n")
    text = page_of(run).visible()
    assert "Phase A Strategy A train 75 75.0 % frozen, bit-equal 25 25.0 %" in text
    assert text.count("of these, moved") == 1, "phase B's"


def test_first_and_last_are_compared_on_the_same_clips(run: Path) -> None:
    assert "The first and the last WER are of the same clips." in page_of(run).visible()
    heard = {key: HEARD[0][key] for key in "ab"}  # 4 deletions; 2 substitutions and 4 insertions
    write_samples(run, 0, "sample", heard)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    write_metrics(run, [eval_record(0, "sample", heard), *records[1:]])
    text = page_of(run).visible()
    assert "On the 2 clips of both evaluations the WER went from 167 % to 16.7 %." in text
    assert "→" not in text, "a sample's rate and the whole split's are not set side by side"
    records[-2] |= {"sample_wer": 1 / 6, "sample_clips": 2}
    write_metrics(run, [eval_record(0, "sample", heard), *records[1:]])
    text = page_of(run).visible()
    assert "167 % before training, 2 clips → 16.7 % final, step 8, 2 clips" in text
    assert "Above: the same 2 clips of a sample, before and after. WER 20.0 % in the last evaluation" in text


def test_samples_that_do_not_give_the_recorded_figures_are_told(run: Path) -> None:
    write_samples(run, 8, "eval", HEARD[8] | {"a": ""})
    assert "the last WER is 46.7 % over 4 clips, not the 20.0 % that the run wrote down" in page_of(run).visible()


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"x": "משפט אחר"}, "None of the measured clips is in the training set, nor is any sentence."),
        ({"x": SENTENCES["b"]}, "None of the measured clips is in the training set, 1 have a sentence"),
        (SENTENCES, "4 of the 4 measured clips are in the training set"),
        (None, "was not checked: the run's manifests are not at hand"),
    ],
)
def test_whether_training_saw_the_clips(run: Path, train: dict[str, str] | None, told: str) -> None:
    if train is not None:
        write_data(run, train)
    assert told in page_of(run).visible()


def test_a_folder_that_is_no_run_is_an_error_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        write_report(run.parent)
    out = run.parent / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    before = out.read_bytes()
    (run / "recipe.json").write_text("{", encoding="utf-8")
    assert main(["report", str(run), "--out", str(out)]) == 3
    assert "recipe.json is not JSON" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("summary.json", {"steps": "8"}),
        ("summary.json", {"steps": 8, "final": {"compared": {"last": {}}}}),
        ("run.json", {"devices": True}),
        ("run.json", {"trainable_weights": {"B": {"head": None}}}),
        ("recipe.json", {"logging": None}),
        ("recipe.json", {"data": {"folder": [""]}}),
        ("deepspeed.json", {"zero_optimization": 2}),
    ],
)
def test_values_that_no_run_writes_are_told_and_hide_no_other_run(run: Path, name, values, capsys) -> None:
    (run / name).write_text(json.dumps(values), encoding="utf-8")
    assert main(["report", str(run)]) == 3
    assert capsys.readouterr().err.startswith(f"error: {run / name}, {next(reversed(values))}")
    assert main(["runs", str(run), "--json"]) == 0
    assert name in json.loads(capsys.readouterr().out)[0]["problem"]


def test_losses_stand_beside_the_guides(run: Path) -> None:
    assert "the guide's table" not in page_of(run).visible(), "which is of its own recipe"
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    (run / "recipe.json").write_text(json.dumps(recipe | {"name": "round2"}), encoding="utf-8")
    shown = page_of(run).visible()
    mean = sum(4.0 / step for step in range(1, 9)) / 8
    assert f"are divided by that here): step 8: 0.9 to 1.6 there, {mean:.2f} here." in shown


def test_two_runs_are_set_beside_each_other_on_the_clips_of_both(tmp_path, capsys):
    """``HEARD[8]`` beside ``HEARD[4]``: a, c and d change; a clip whose text differs is left out."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run, other = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    write_samples(other, 8, "eval", HEARD[4])
    samples = other / "samples" / "step-000008-eval.jsonl"
    samples.write_text(samples.read_text(encoding="utf-8").replace(SENTENCES["b"], "אחר"), encoding="utf-8")
    assert main(["report", str(run), str(other)]) == 0
    line, path = capsys.readouterr().out.replace("\u202f", " ").splitlines()
    # a, c, d of 13 words: 2 errors of the first (d), 2 of the other (a deletion, a substitution)
    assert line.startswith(
        f"on the same 3 clips of the whole eval split, WER 15.4 % of {run} after step 8 and 15.4 % of"
    )
    assert "+0.00 points (95 %: " in line and "more than chance" not in line
    page = Parsed(Path(path).read_text(encoding="utf-8"))
    text = page.visible()
    assert not page.open and f"Beside {other}" in text and "1 clip that only one of them has are left out" in text
    assert f"{other} hears better: 1 clip" in text and f"{other} hears worse: 2 clips" in text
    assert main(["report", str(run), str(tmp_path)]) == 3


def test_runs_without_a_clip_in_common_are_not_compared(tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run, other = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    for path in (other / "samples").glob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace('"id": "', '"id": "x'), encoding="utf-8")
    assert main(["report", str(run), str(other)]) == 3
    assert "have no evaluated clip in common" in capsys.readouterr().err


def test_runs_of_a_folder_are_listed_the_broken_one_too(tmp_path, capsys, monkeypatch):
    for name in ("one", "two", "broken", "unread"):
        (tmp_path / name).mkdir()
    finished, going, broken, odd = (make_run(tmp_path / name) for name in ("one", "two", "broken", "unread"))
    (going / "summary.json").unlink()
    (broken / "recipe.json").write_text("{", encoding="utf-8")
    name = "step-000008-eval.jsonl"
    (odd / "samples" / name).unlink()
    (odd / "samples" / name).mkdir()
    for run in (finished, going, broken, odd):
        run.rename(tmp_path / f"{run.parent.name}-run")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    rows = {Path(row["run"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert rows["one-run"]["is_finished"] and rows["one-run"]["wer"] == pytest.approx(3 / 15)
    assert not rows["two-run"]["is_finished"] and rows["two-run"]["step"] == 8
    assert "is not JSON" in rows["broken-run"]["problem"]
    unread = f"cannot read the run {tmp_path}/unread-run: Is a directory: {tmp_path}/unread-run/samples/{name}"
    assert rows["unread-run"]["problem"] == unread
    assert main(["report", str(tmp_path / "unread-run")]) == 4
    assert capsys.readouterr().err == f"error: {unread}\n", "another --out would not help"
    assert main(["runs", str(tmp_path)]) == 0
    assert "20.0%" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["runs", str(tmp_path)]) == 0
    assert f"run: {tmp_path}/one-run\nstep: 8\nWER: 20.0%\n" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 3
    assert (
        "no run in runs" in (told := capsys.readouterr().err)
        and "broken-run, one-run, two-run lie here: hebrew-asr runs ." in told
    )
    assert main(["runs", str(tmp_path / "none")]) == 3
    capsys.readouterr()
    for typed, code in (("report .", 3), ("average . --out mean", 5), ("export . --out new", 5)):
        assert main(typed.split()) == code
        assert ", such as broken-run, one-run, two-run and 1 more\n" in capsys.readouterr().err


def test_tensorboard_gets_curves_and_what_was_heard(tmp_path: Path, capsys) -> None:
    """Read as the format says: length, checksum, event, checksum. What cannot be written is told once."""
    heard = [Sample("a", "שלום עולם", "שלום")]
    row = {"split": "eval", "wer": 0.5, "cer": 0.2, "wer_mode": "strict", "clips": 1, "words": 2}
    row |= {"substitutions": 0, "deletions": 1, "insertions": 0}
    records = [from_row(train_record(3)), EvalRecord(step=4, heard=heard, **row)]
    sink = TensorBoardSink(tmp_path, 2)
    for record in records:
        sink.write(record)
    sink.close()
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content, found = file.read_bytes(), {}
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        found |= {value.tag: (event.step, value) for value in event.summary.value}
        content = content[16 + size :]
    assert {tag: (step, value.simple_value) for tag, (step, value) in found.items() if "heard" not in tag}.items() >= {
        "train/loss": (3, pytest.approx(4 / 3)),
        "train/lr/head": (3, pytest.approx(1e-4)),
        "eval/wer": (4, 0.5),
    }.items()
    assert "heard: שלום" in found["eval/a/text_summary"][1].tensor.string_val[0].decode()
    (tmp_path / "file").write_text("")
    broken = TensorBoardSink(tmp_path / "file", None)
    broken.write(records[0])
    broken.close()
    assert capsys.readouterr().err.count("training goes on without them") == 1
