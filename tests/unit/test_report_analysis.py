"""What the report draws and counts: alignments, confusions, stories, averages, axes, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hebrew_asr.pages.figures import Axis, fitting_axis, linear_axis
from hebrew_asr.pages.words import duration, percent, quantity, scientific
from hebrew_asr.report.analysis import (
    align,
    confusions,
    errors_by_group,
    errors_by_set,
    interval,
    random_clips,
    score,
    stories,
    worst,
)
from hebrew_asr.report.curves import charts
from hebrew_asr.report.gather import read_run
from hebrew_asr.report.page import page
from hebrew_asr.text.normalize import normalize
from hebrew_asr.text.wer import count_errors
from tests.support.properties import examples
from tests.support.report_run import HEARD, SENTENCES, make_run, train_record, write_data, write_metrics, write_samples


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_the_interval_is_over_groups_where_they_are_known(run: Path) -> None:
    def spread() -> Any:
        read = read_run(run)
        scored = score(read, read.evaluations[-1])
        assert scored is not None
        return interval(read, scored)

    assert spread()[2] is None
    write_data(run, SENTENCES)
    assert spread()[2] is None, "no group is known"
    write_data(run, SENTENCES, lambda key: "first" if key in "ab" else "second")
    low, high, groups = spread()
    assert groups == 2 and low <= 3 / 15 <= high
    read = read_run(run)
    scored = score(read, read.evaluations[-1])
    assert scored is not None
    counted = [(group, errors.word_edits, errors.words) for group, errors in errors_by_group(read, scored, 5)]
    assert counted == [("second", 2, 9), ("first", 1, 6)]


def test_errors_and_curves_by_data_set_where_ids_name_several(run: Path) -> None:
    assert "by data set" not in page(read_run(run), None, {})
    sets = {"a": "kan/a", "b": "kan/b", "c": "<d1>/c", "d": "<d1>/d"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = {4: {"kan": 0.5, "<d1>": 0.25}, 8: {"kan": 1 / 6, "<d1>": 2 / 9}}
    for record in records:
        if record["event"] == "eval" and record["step"]:
            record["wer_by_set"] = rates[record["step"]]
    write_metrics(run, records)
    for file in (run / "samples").iterdir():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lines = (json.dumps(row | {"id": sets[row["id"]]}, ensure_ascii=False) for row in rows)
        file.write_text("\n".join(lines), encoding="utf-8")
    read = read_run(run)
    (scored,) = (one for one in [score(read, read.evaluations[-1])] if one is not None)
    counted = [(name, errors.word_edits, errors.words) for name, errors in errors_by_set(scored)]
    assert counted == [("<d1>", 2, 9), ("kan", 1, 6)]
    (chart,) = (chart for chart in charts(read) if chart.title == "WER by data set")
    assert {line.name: [point.value for point in line.points] for line in chart.series} == {
        "<d1>": [0.25, 2 / 9],
        "kan": [0.5, 1 / 6],
    }
    told = page(read, None, {})
    assert "Errors by data set" in told and "WER by data set" in told
    assert "&lt;d1&gt;" in told and "<d1>" not in told


WORDS = st.lists(st.sampled_from(["אבא", "בא", "הביתה", "לא", "<x>", "צה״ל"]), max_size=7).map(" ".join)


@examples(200)
@given(WORDS, WORDS)
def test_alignments_spell_both_sides_and_add_up_to_the_counts(reference: str, hypothesis: str) -> None:
    edits, counts = align(reference, hypothesis, "strict"), count_errors([reference], [hypothesis])
    assert " ".join(edit.reference for edit in edits if edit.reference) == normalize(reference, "strict")
    assert " ".join(edit.hypothesis for edit in edits if edit.hypothesis) == normalize(hypothesis, "strict")
    kinds = [edit.kind for edit in edits]
    tally = tuple(kinds.count(kind) for kind in ("substitute", "delete", "insert"))
    assert tally == (counts.substitutions, counts.deletions, counts.insertions)
    assert all((edit.reference == edit.hypothesis) == (edit.kind == "equal") for edit in edits)


def test_which_clips_are_shown_and_what_is_confused(run: Path) -> None:
    read = read_run(run)
    last, middle = (score(read, record) for record in (read.evaluations[-1], read.evaluations[1]))
    assert last is not None and middle is not None
    bad = worst(last, 5)
    assert [clip.sample.id for clip in bad] == ["b", "d"], "one error in two words before two in five"
    assert sorted(clip.sample.id for clip in random_clips(last, 5, bad)) == ["a", "c"]
    assert random_clips(last, 1, bad) == random_clips(last, 1, bad)
    counted = confusions(middle, 5)
    assert counted.substituted == [(("אוכל", "אכל"), 1), (("כותבת", "קותבת"), 1)]
    assert counted.deleted == [("בבית", 1)] and counted.inserted == []
    assert counted.letters == [(("כ", "ק"), 1)] and counted.letters_same_sound == counted.letters_total == 1


def test_stories_hold_the_changes_of_clips_that_were_learned(run: Path) -> None:
    told = stories(read_run(run), 2)
    assert [story.clip_id for story in told] == ["a", "c"]
    assert [evaluation.step for evaluation, _ in told[0].heard] == [0, 4, 8]
    assert [edit.kind for edit in told[0].heard[1][1]] == ["equal"] * 3 + ["delete"]
    write_samples(run, 8, "eval", HEARD[4])
    steps = {story.clip_id: [record.step for record, _ in story.heard] for story in stories(read_run(run), 4)}
    assert steps["a"] == [0, 4], "an evaluation that changed nothing is left out"


def test_long_curves_are_averaged_within_phases_and_rates_are_not_averages_of_rates(run: Path) -> None:
    steps = [train_record(step, phase="B" if step <= 401 else "A", step_s=1.0 + step % 2) for step in range(1, 801)]
    steps[9]["loss"] = float("nan")
    write_metrics(run, steps)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"phase_starts": [0, 401]}
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    loss, _, rates, throughput = charts(read_run(run))
    points = loss.series[0].points
    assert 100 < len(points) < 200
    labels = [point.label for point in throughput.series[0].points]
    assert {"steps 396–400", "step 401", "steps 402–406"} <= set(labels)
    assert (points[0].low, points[0].high) == (4.0 / 5, 4.0)
    assert points[0].value == pytest.approx(sum(4.0 / step for step in range(1, 6)) / 5)
    assert throughput.series[0].points[0].value == pytest.approx(20 / 8)  # 5 steps of 2, 1, 2, 1, 2 s
    assert [series.name for series in rates.series] == ["projector, head", "audio_top"]
    assert loss.series[0].points[1].label == "steps 6–11", "the step without a finite loss is left out"


@examples(300)
@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5), st.booleans())
def test_axes_hold_their_values_and_a_few_ticks(values: list[float], fits: bool) -> None:
    axis: Axis = fitting_axis(values, str) if fits else linear_axis(values, str)
    assert axis.low <= min(values) and max(values) <= axis.high
    assert 1 <= len(axis.ticks()) <= 20
    assert all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks())
    heights = [axis.y(value) for value in sorted(values)]
    assert heights == sorted(heights, reverse=True)
    assert axis.y(axis.high * 10) == axis.y(axis.high) < axis.y(axis.low)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (percent(0.0432), "4.3 %"),
        (percent(0.00432), "0.43 %"),
        (percent(0), "0 %"),
        (percent(6.527), "653 %"),
        (percent(1), "100 %"),
        (quantity(0.1234), "0.123"),
        (quantity(12.0), "12"),
        (quantity(1234.5), "1,234"),
        (quantity(0.00002), "2e-5"),
        (scientific(2.5e-05), "2.5e-5"),
        (duration(8065), "2 h 14 min"),
        (duration(62.4), "1 min 2 s"),
        (duration(9.96), "9.96 s"),
    ],
)
def test_numbers_for_people(made: str, expected: str) -> None:
    assert made.replace("\u202f", " ") == expected
