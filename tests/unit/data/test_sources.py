"""Every adapter, against shards with the real schema."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.sources import Row, Unit, open_source, source_name, unit_name
from hebrew_asr.sources.rows import is_held_out
from hebrew_asr.sources.walk import files_in
from tests.support import corpora


def rows_of(spec: str | Path, **options) -> list[Row]:
    source = open_source(str(spec), **options)
    return [row for shard in source.shards for unit in shard.units() for _, row in unit.rows()]


def units_of(spec: str | Path) -> list[Unit]:
    return [unit for shard in open_source(str(spec)).shards for unit in shard.units()]


def test_crowd_transcribe(tmp_path):
    row = corpora.crowd_row("Pod/ep3/17", 1, text="שלום", duration_s=1.5, noisy=True, skipped=True, retake=True)
    corpora.write_shard(tmp_path, [row], corpora.CROWD_TRANSCRIBE)
    (got,) = rows_of(tmp_path)
    assert (got.id, got.text) == ("Pod/ep3/17", "שלום")
    assert got.groups == ("uuid:Pod/ep3/17", "source:Pod", "episode:Pod/ep3")
    assert got.flags == ("skipped", "noisy")
    assert got.stated_duration_s == 1.5
    assert got.retake and not got.timed
    assert got.audio_bytes() == row["audio"]["bytes"]


def test_crowd_transcribe_with_null_extra_data(tmp_path):
    row = corpora.crowd_row("a-uuid-without-slashes", 1) | {"extra_data": None, "is_retranscribe": None}
    corpora.write_shard(tmp_path, [row], corpora.CROWD_TRANSCRIBE)
    (got,) = rows_of(tmp_path)
    assert got.groups == ("uuid:a-uuid-without-slashes",)
    assert got.flags == () and got.stated_duration_s is None and not got.retake


_FIELDS = {"noisy": True, "skipped": "false", "duration": "1.5", "attributes": {"retranscribe": True}}


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(_FIELDS),
        json.dumps(_FIELDS, indent=1, ensure_ascii=False).encode(),
        str(_FIELDS),
        json.dumps(json.dumps(_FIELDS)),
        json.dumps(_FIELDS | {"attributes": json.dumps(_FIELDS["attributes"])}),
        json.dumps([[name, value] for name, value in _FIELDS.items()]),
    ],
)
def test_columns_of_fields_written_as_text(tmp_path, written):
    """By JSON, twice at that, or by Python: the check-boxes of those who transcribed it count however they came."""
    columns = {"uuid": ["P/e/1"], "audio": [b"x"], "sentence": [None], "text": ["שלום"], "extra_data": [written]}
    pq.write_table(pa.table(columns | {"sentence": pa.array([None], pa.string())}), tmp_path / "a.parquet")
    (row,) = rows_of(tmp_path / "a.parquet")
    assert (row.text, row.flags, row.stated_duration_s, row.retake) == ("שלום", ("noisy",), 1.5, True)
    for box in (written, _FIELDS):  # a table of another schema may have the check-boxes too
        table = pa.table({"audio": [b"x"], "text": ["שלום"], "extra_data": [box]})
        pq.write_table(table, tmp_path / "plain.parquet")
        assert [row.flags for row in rows_of(tmp_path / "plain.parquet")] == [("noisy",)]
    del columns["uuid"], columns["sentence"], columns["extra_data"]
    for metadata, groups in ((json.dumps({"entry_id": "e1"}), ("session:e1",)), (float("nan"), ())):
        pq.write_table(pa.table(columns | {"transcript": ["שלום"], "metadata": [metadata]}), tmp_path / "b.parquet")
        (row,) = rows_of(tmp_path / "b.parquet")
        assert (row.groups, row.problem) == (groups, None)


@pytest.mark.parametrize(
    "written", ['{"noisy": tr', "noisy", "[1, 2]", "7", "[[1]]", '{"attributes": "x"}', b"\xff\xfe", "[" * 9_999]
)
def test_a_column_of_fields_that_cannot_be_read_is_a_named_row(tmp_path, written):
    columns = {"uuid": ["P/e/1"], "audio": [b"x"], "sentence": ["שלום"], "extra_data": [written]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (row,) = rows_of(tmp_path / "a.parquet")
    assert row.problem and row.problem[0] == "unreadable metadata" and "P/e/1" in row.id


def test_recital(tmp_path):
    text = corpora.timed((0, 2, "שלום"), (2, 4, "עולם"))
    corpora.write_shard(tmp_path, [corpora.recital_row("entry-9", 1, text, 4.0)], corpora.RECITAL)
    (got,) = rows_of(tmp_path)
    assert got.timed and got.text == text
    assert got.groups == ("session:entry-9",)
    assert got.stated_duration_s is None  # metadata.duration is nominal


def test_old_recital_metadata_has_three_fields(tmp_path):
    metadata = pa.struct([("seek", pa.float32()), ("source", pa.string()), ("entry_id", pa.string())])
    schema = pa.schema([("audio", corpora.AUDIO), ("transcript", pa.string()), ("metadata", metadata)])
    row = {
        "audio": {"bytes": b"x", "path": "e"},
        "transcript": "שלום",
        "metadata": {"seek": 0.0, "source": "s", "entry_id": "e1"},
    }
    corpora.write_shard(tmp_path, [row], schema)
    (got,) = rows_of(tmp_path)
    assert got.groups == ("session:e1",) and not got.timed


def test_common_voice(tmp_path):
    row = {"client_id": "c7", "path": "a.mp3", "audio": {"bytes": b"x", "path": "a.mp3"}, "sentence": "שלום"}
    corpora.write_shard(tmp_path, [row], corpora.COMMON_VOICE)
    (got,) = rows_of(tmp_path)
    assert (got.text, got.groups) == ("שלום", ("speaker:c7",))


def test_fleurs(tmp_path):
    row = {
        "id": 5,
        "num_samples": 48_000,
        "audio": {"bytes": b"x", "path": "a.wav"},
        "transcription": "שלום עולם",
        "raw_transcription": "שלום, עולם.",
    }
    corpora.write_shard(tmp_path, [row, row], corpora.FLEURS)
    got, again = rows_of(tmp_path)
    assert (got.text, got.stated_duration_s) == ("שלום עולם", 3.0)
    assert got.id != again.id  # FLEURS' own id is that of the sentence


def test_saspeech_and_the_ancestor_of_v5(tmp_path):
    audio = {"bytes": b"x", "path": "a.wav"}
    corpora.write_shard(tmp_path / "sas", [{"audio": audio, "text": "שלום"}], corpora.SASPEECH)
    ancestor = {"uuid": "P/e/1", "audio": audio, "orig_text": "שלום", "text": "שלום לך"}
    corpora.write_shard(tmp_path / "wt", [ancestor], corpora.WHISPER_TRAINING)
    assert rows_of(tmp_path / "sas")[0].text == "שלום"
    (got,) = rows_of(tmp_path / "wt")
    assert got.text == "שלום לך" and "source:P" in got.groups


def test_unknown_columns_are_named(tmp_path):
    corpora.write_shard(tmp_path, [{"sound": "x", "words": "y"}], pa.schema([("sound", "string"), ("words", "string")]))
    with pytest.raises(DataError, match=r"train-00000.*'sound', 'words'.*audio"):
        units_of(tmp_path)


def test_columns_of_another_type(tmp_path):
    table = pa.table({"audio": [b"RIFF"], "uuid": [7], "sentence": ["שלום"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet")[0].id == "7"
    pq.write_table(table.set_column(0, "audio", [[0.5]]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: row 00000-0+: its audio is float"):
        rows_of(tmp_path / "b.parquet")
    samples = {"array": [0.5, -0.5], "path": "a.wav", "sampling_rate": 16000}
    pq.write_table(table.set_column(0, "audio", [[samples]]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: row 00000-0+: its audio is decoded samples, .*decode=False"):
        rows_of(tmp_path / "c.parquet")


def test_broken_parquet_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"train-0\.parquet"):
        units_of(tmp_path)


def test_units_are_whole_row_groups_in_order(tmp_path):
    rows = [{"audio": {"bytes": b"x", "path": ""}, "text": str(i)} for i in range(1000)]
    corpora.write_shard(tmp_path, rows, corpora.SASPEECH, group=80)
    units = units_of(tmp_path)
    assert [unit.num_rows for unit in units] == [160] * 6 + [40]
    assert [unit.first_row for unit in units] == [0, 160, 320, 480, 640, 800, 960]
    assert len({unit_name(unit) for unit in units}) == 7
    got = [(position, row.text) for unit in units for position, row in unit.rows()]
    assert got == [(i, str(i)) for i in range(1000)]


@pytest.mark.parametrize(
    ("path", "held_out"),
    [
        ("data/train-00000-of-00042.parquet", False),
        ("data/test-00000-of-00004.parquet", True),
        ("he_il/validation-00000-of-00001.parquet", True),
        ("test/0000.parquet", True),
        ("test/train-0.parquet", False),
        ("part7.parquet", False),
        ("latest-contest.parquet", False),
    ],
)
def test_test_shards_are_told_by_name(path, held_out):
    assert is_held_out(path) is held_out


def test_folder_of_pairs(tmp_path):
    corpora.write_pairs(tmp_path / "one", {"a.wav": (b"1", "\ufeffשלום"), "b.MP3": (b"22", "עולם")})
    got = rows_of(tmp_path / "one")
    assert [(row.id, row.text, row.groups) for row in got] == [("a.wav", "שלום", ()), ("b.MP3", "עולם", ())]
    corpora.write_pairs(tmp_path / "two", {"dana/a.wav": (b"1", "x"), "noam/a.wav": (b"2", "y")})
    assert [row.groups for row in rows_of(tmp_path / "two")] == [("session:dana",), ("session:noam",)]


@pytest.mark.parametrize("columns", ["audio,text", "file_name,sentence", "audio_filepath,text", "path,transcription"])
def test_csv_listings(tmp_path, columns):
    (tmp_path / "x.wav").write_bytes(b"1")
    (tmp_path / "metadata.csv").write_text(f'{columns}\nx.wav,"שלום, עולם"\n', encoding="utf-8")
    (row,) = rows_of(tmp_path)
    assert (row.id, row.text, row.audio_bytes()) == ("x.wav", "שלום, עולם", b"1")


def test_common_voice_tsv_finds_its_clips(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp3").write_bytes(b"1")
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\nc1\ta.mp3\tשלום\n", encoding="utf-8")
    (row,) = rows_of(tmp_path / "train.tsv")
    assert row.groups == ("speaker:c1",) and row.audio_bytes() == b"1"


def test_official_jsonl(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"1")
    record = {"audio": "x.wav", "text": "language Hebrew<asr_text>שלום", "id": "n1", "group": "g", "duration_s": 2}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n\n", encoding="utf-8")
    (row,) = rows_of(tmp_path / "train.jsonl")
    assert (row.id, row.text, row.groups, row.stated_duration_s) == ("n1", "שלום", ("session:g",), 2.0)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("{not json", "line 1: not JSON"),
        ('{"text": "x"}', "no known set of columns among .'text'"),
        ('{"audio": "x.wav", "words": "x"}', "no known set of columns"),
        ("", "holds no rows"),
    ],
)
def test_wrong_listings_name_the_line(tmp_path, lines, problem):
    (tmp_path / "x.wav").write_bytes(b"1")
    (tmp_path / "clips.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        open_source(str(tmp_path))


@pytest.mark.parametrize("content", ["null", "5", '"text"'])
def test_json_that_is_no_object_is_told(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="line 1: not a JSON object"):
        open_source(str(tmp_path / "x.json"))


def test_several_listings_are_ambiguous(tmp_path):
    for name in ("train.jsonl", "more.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"more\.jsonl, train\.jsonl"):
        open_source(str(tmp_path))


def test_revision_of_local_files_follows_their_content_list(tmp_path):
    path = corpora.write_shard(tmp_path, [{"audio": {"bytes": b"x", "path": ""}, "text": "a"}], corpora.SASPEECH)
    before = open_source(str(tmp_path)).revision
    assert open_source(str(tmp_path)).revision == before
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 2), path)
    assert open_source(str(tmp_path)).revision != before


def test_not_a_source(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder, and not a hub id"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="public test set"):
        open_source("ivrit-ai/eval-d1")
    with pytest.raises(DataError, match="no parquet files, no listing"):
        open_source(str(tmp_path))
    (tmp_path / "talks.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="Unpack an archive first"):
        open_source(str(tmp_path / "talks.zip"))
    assert source_name("ivrit-ai/crowd-transcribe-v5@abc") == "crowd-transcribe-v5"
    assert source_name("google/fleurs:he_il") == "fleurs"


def test_a_footer_is_walked_once(tmp_path):
    """The forecast of disk space asks for the units of a shard before its conversion does."""
    pq.write_table(pa.table({"audio": [b"x"] * 3, "text": ["שלום"] * 3}), tmp_path / "a.parquet", row_group_size=1)
    (shard,) = open_source(str(tmp_path)).shards
    units = shard.units()
    assert sum(unit.num_rows for unit in units) == 3
    (tmp_path / "a.parquet").unlink()
    assert shard.units() == units


@pytest.mark.parametrize("text", ["text", "sentence", "transcript"])
@pytest.mark.parametrize("column", ["extra_data", "metadata"])
def test_flags_are_found_in_either_column_of_any_table(tmp_path, column, text):
    boxes = [{"noisy": False}, {"noisy": True}]
    columns = {"audio": [b"x"] * 2, text: ["שלום"] * 2}
    pairs = [[("noisy", "false")], [("noisy", "true")]]
    maps = [pa.array(pairs, pa.map_(pa.string(), pa.string())), pa.array(boxes, pa.map_(pa.string(), pa.bool_()))]
    for written in (boxes, [json.dumps(box) for box in boxes], [str(box) for box in boxes], *maps):
        pq.write_table(pa.table(columns | {column: written}), tmp_path / "a.parquet")
        rows = rows_of(tmp_path / "a.parquet")
        assert [row.flags for row in rows] == [(), ("noisy",)]
        assert not any(row.problem for row in rows)
    pq.write_table(pa.table(columns | {column: ['{"noisy": tr', '{"noisy": false}']}), tmp_path / "a.parquet")
    assert [row.problem and row.problem[0] for row in rows_of(tmp_path / "a.parquet")] == ["unreadable metadata", None]


def test_metadata_may_be_words(tmp_path):
    words = {"audio": [b"x"], "text": ["שלום"], "metadata": ["recorded at home"]}
    pq.write_table(pa.table(words), tmp_path / "a.parquet")
    (row,) = rows_of(tmp_path / "a.parquet")
    assert row.problem is None


def test_a_link_to_the_folder_above_leads_back(tmp_path):
    data = corpora.write_pairs(tmp_path / "data", {"a": (b"x", "שלום")})
    corpora.write_pairs(tmp_path / "other", {"b": (b"x", "שלום")})
    (data / "up").symlink_to("..")
    (data / "top").symlink_to("/")
    (data / "other").symlink_to("../other")
    assert [path.name for path in files_in(data) if path.suffix == ".txt"] == ["a.txt", "b.txt"]
