"""Duplicates, held-out data, the two splits, and the report on what they share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from hebrew_asr.corpus.preparation.assemble import assemble, group_of
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.output import drop_table
from hebrew_asr.corpus.preparation.parts import Record
from hebrew_asr.data import records as of_records
from hebrew_asr.data.records import Records
from hebrew_asr.errors import DataError
from tests.support.tiny_task import ROOT


def record(row: int, *groups: str, words: str = "", fate: str = "kept", **fields) -> Record:
    defaults = {"fingerprint": f"f{row}", "duration_s": 2.0, "transcript": words, "words": words}
    return Record(fate, f"set/{row}", 0, row, groups=groups, **(defaults | fields))  # type: ignore[arg-type]


def podcasts(sources: int, episodes: int, clips: int) -> list[Record]:
    """Clips of several sources, each with several episodes."""
    names = [(s, e, c) for s in range(sources) for e in range(episodes) for c in range(clips)]
    return [
        record(row, f"source:s{s}", f"episode:s{s}/e{e}", f"uuid:s{s}/e{e}/{c}") for row, (s, e, c) in enumerate(names)
    ]


def test_reissued_recordings_keep_the_first_transcription():
    records = [record(0, "uuid:x", retake=True), record(1, "uuid:x"), record(2, "uuid:x")]
    records += [record(row) for row in range(3, 40)]
    result = assemble(records, PrepareOptions())
    dropped = {r.id: (r.reason, r.detail) for r in result.dropped}
    assert dropped == {
        "set/0": ("transcribed twice", "kept set/1"),
        "set/2": ("transcribed twice", "kept set/1"),
    }


def test_equal_samples_are_kept_once_even_across_datasets():
    again = dataclasses.replace(record(0, fingerprint="f5"), id="other/0")
    result = assemble([*(record(row) for row in range(30)), again], PrepareOptions())
    assert [(r.id, r.reason, r.detail) for r in result.dropped] == [("other/0", "duplicate audio", "kept set/5")]


def test_clips_of_one_recording_are_no_duplicates_of_each_other():
    cut = [record(0, "uuid:x", fingerprint=f"c{i}", whole=False) for i in range(3)]
    result = assemble([*cut, *(record(row) for row in range(1, 40))], PrepareOptions())
    assert not result.dropped


def test_whole_sources_are_held_out_where_they_are_small_enough():
    result = assemble(podcasts(120, 2, 3), PrepareOptions())
    assert result.split["held_out_whole"] == "source"
    assert (len(result.eval), result.split["held_out_groups"]) == (36, 6)
    assert not any(result.split["keys_in_train_and_eval"].values())
    assert {group_of(r, "source") for r in result.eval} == {r.groups[0].removeprefix("source:") for r in result.eval}


def test_few_large_sources_fall_back_to_episodes_and_say_so():
    result = assemble(podcasts(2, 30, 2), PrepareOptions())
    assert result.split["held_out_whole"] == "episode"
    shared = result.split["keys_in_train_and_eval"]
    assert shared["source"] > 0 and shared["episode"] == shared["uuid"] == 0
    assert result.split["components"] == 60
    assert group_of(result.eval[0], "episode").startswith("s")


def test_equal_sentences_and_sessions_stay_on_one_side():
    words = "אחת שתיים שלוש ארבע חמש שש"
    same = [record(row, f"session:{row}", words=words) for row in range(10)]
    others = [record(row, f"session:o{row % 5}") for row in range(10, 60)]
    result = assemble([*same, *others], PrepareOptions(eval_fraction=0.3))
    evaluated = {r.row for r in result.eval}
    assert evaluated.issuperset(range(10)) or evaluated.isdisjoint(range(10))
    assert result.eval


def test_one_component_cannot_be_split():
    records = [record(row, "session:only") for row in range(20)]
    with pytest.raises(DataError, match="all 20 clips belong together"):
        assemble(records, PrepareOptions())
    assert not assemble([record(row, "session:only") for row in range(20)], PrepareOptions(eval_fraction=0)).eval


def test_public_tests_stay_out_with_all_that_overlaps_them():
    words = "אחת שתיים שלוש ארבע חמש שש שבע"
    records = [
        record(0, "source:Mindset", "uuid:Mindset/1/1", words=words, fate="held out", reason="public test set"),
        record(1, "source:Mindset"),
        record(2, fingerprint="f0"),
        record(3, words=words),
        record(4, "uuid:Mindset/1/1"),
        *(record(row) for row in range(5, 40)),
    ]
    result = assemble(records, PrepareOptions())
    details = {r.row: r.detail for r in result.dropped}
    assert details == {0: "", 1: "same source", 2: "same audio", 3: "same sentence", 4: "same uuid"}
    assert not any(result.split["keys_in_set_and_public_tests"].values())


def test_random_split_is_over_rows_with_text_before_any_filter():
    records = [record(row) for row in range(100)]
    records[7] = record(7, fate="dropped", reason="no text")
    records[9] = record(9, fate="dropped", reason="too long")
    result = assemble(records, PrepareOptions(split="random"))
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"row": [row for row in range(100) if row != 7]})
    expected = set(rows.train_test_split(test_size=0.05, seed=42)["test"]["row"]) - {9}
    assert {r.row for r in result.eval} == expected
    assert result.split["leaky"] and result.split["method"] == "random"


def test_random_split_of_one_long_recording_is_over_its_clips():
    """Over rows all of it would be evaluated on, and nothing trained on."""
    cut = [record(0, "recording:x", fingerprint=f"c{i}", whole=False) for i in range(7)]
    result = assemble(cut, PrepareOptions(split="random"))
    assert (len(result.train), len(result.eval)) == (6, 1)
    assert result.split["drawn"] == "clips" and result.split["keys_in_train_and_eval"]["recording"] == 1
    with pytest.raises(DataError, match="all 1 clips would be evaluated on"):
        assemble(cut[:1], PrepareOptions(split="random"))


def test_random_split_reports_what_it_leaks():
    result = assemble(podcasts(2, 2, 50), PrepareOptions(split="random"))
    assert result.split["keys_in_train_and_eval"] == {"audio": 0, "episode": 4, "source": 2, "uuid": 0}


def test_nothing_left_is_an_error_with_the_reasons():
    records = [record(0, fate="dropped", reason="too long"), record(1, fate="dropped", reason="too long")]
    with pytest.raises(DataError, match="out of 2: 2 too long"):
        assemble(records, PrepareOptions())


def test_drop_table_counts_everything_once():
    dropped = [record(i, fate="dropped", reason="b" if i % 3 else "a", duration_s=3600.0) for i in range(9)]
    assert drop_table(dropped) == {"b": {"clips": 6, "hours": 6.0}, "a": {"clips": 3, "hours": 3.0}}


def test_each_dataset_that_matters_has_its_own_held_out_groups():
    """Sessions beside podcasts must not make up for them: what counts is counted within each dataset."""
    sessions = [dataclasses.replace(record(5000 + n, f"session:r{n // 4}"), id=f"recital/{n}") for n in range(2000)]
    small = [record(9000 + n, f"source:t{n // 4}", f"episode:t{n // 4}/{n}") for n in range(80)]
    for crowd, whole in ((podcasts(20, 8, 10), "episode"), ([*podcasts(20, 2, 40), *small], "source")):
        result = assemble([*crowd, *sessions], PrepareOptions())
        assert result.split["held_out_whole"] == whole  # the small ones suffice where one more fills its share alone
        assert all(sides["eval"] >= 5 for sides in result.split["groups"].values())
        assert len([r for r in result.eval if r.id.startswith("set/")]) >= 0.5 * 0.05 * len(crowd)


def test_a_split_says_of_how_many_clips_it_knows_no_speaker():
    known = [record(n, f"speaker:{n}") for n in range(50)]
    unknown = [dataclasses.replace(record(100 + n), id=f"set/talk_{n % 5}-{n:03d}.wav") for n in range(50)]
    split = assemble([*known, *unknown], PrepareOptions()).split
    assert split["clips_without_group"] == 50
    assert split["groups_by_name"] == {f"set/talk_{n}": 10 for n in range(5)}
    records = [*(record(n, f"speaker:{n}") for n in range(50)), *unknown]
    grouped = assemble(records, PrepareOptions(group_by_name=True))
    assert grouped.split["clips_without_group"] == 0 and grouped.split["components"] == 55
    assert assemble(known, PrepareOptions()).split["groups_by_name"] == {}
    parquet = [dataclasses.replace(record(n), id=f"set/00000-{n:06d}") for n in range(50)]
    assert assemble(parquet, PrepareOptions()).split["groups_by_name"] == {}


@pytest.mark.parametrize(("hold_out", "whole", "on_both"), [("source", "source", 0), ("episode", "group", 4)])
def test_sources_without_episodes_are_held_out_whole_unless_asked_otherwise(hold_out, whole, on_both):
    records = [record(row, f"source:s{row % 4}") for row in range(80)]
    split = assemble(records, PrepareOptions(hold_out=hold_out, eval_fraction=0.2)).split
    assert (split["held_out_whole"], split["keys_in_train_and_eval"]["source"]) == (whole, on_both)


@pytest.mark.parametrize("options", [{}, {"split": "random"}, {"group_by_name": True}])
def test_a_split_is_the_same_of_columns_in_memory_and_in_a_file_however_they_are_cut(options, tmp_path, monkeypatch):
    words = "אחת שתיים שלוש ארבע חמש שש"
    found = podcasts(30, 2, 3)
    found += [record(row, fingerprint=f"f{row % 190}", words=words if row % 40 == 0 else "") for row in range(180, 220)]
    found += [record(row, fate="held out", words=words) for row in (220, 221)]
    found += [dataclasses.replace(record(row), id=f"set/talk_{row}") for row in range(222, 260)]
    found.insert(100, record(260, fate="dropped", reason="no text"))
    whole = assemble(found, PrepareOptions(**options))
    assert {"no text", "overlaps a public test set"} <= {one.reason for one in whole.dropped}
    monkeypatch.setattr(of_records, "_AT_ONCE", 7)
    pieces = assemble(Records(Record, found, tmp_path / "records"), PrepareOptions(**options))
    assert pieces.split == whole.split
    for side in ("train", "eval", "dropped"):
        assert list(getattr(pieces, side)) == list(getattr(whole, side))
        assert getattr(pieces, side)[-1] == list(getattr(whole, side))[-1]


_SPLIT = """
import sys
from hebrew_asr.corpus.preparation.assemble import Record, assemble
from hebrew_asr.data.records import Records
from hebrew_asr.corpus.preparation.options import PrepareOptions
from tests.benchmarks.manifest_scale import Cost
from pathlib import Path

def clips(count):
    for n in range(count):
        text = f"{n} " + "מילה ועוד מילה " * 7
        yield Record("kept", f"set/{n:09d}", 0, n, 4.6, text, fingerprint=f"{n:032x}", words=text,
                     groups=(f"speaker:{n % 500}", f"uuid:{n:036x}"))

assemble(clips(1000), PrepareOptions())
cost = Cost()
assert assemble(Records(Record, clips(50_000), Path(sys.argv[1])), PrepareOptions()).eval
print(cost.peak_mib)
"""


def test_a_split_takes_a_few_hundred_bytes_of_memory_for_each_clip(tmp_path):
    """Objects, or columns that are copied, take 3,000 bytes and more."""
    command = [sys.executable, "-c", _SPLIT, str(tmp_path / "records")]
    peak_mib = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert peak_mib * 2**20 / 50_000 < 1000
