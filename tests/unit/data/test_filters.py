"""Each reason to drop a clip, on audio that really has the fault."""

from __future__ import annotations

import numpy as np
import pytest

from hebrew_asr.audio.decode import decode, to_int16
from hebrew_asr.corpus.preparation import convert as convert_module
from hebrew_asr.corpus.preparation.convert import convert_row, convert_unit, encode, fingerprint
from hebrew_asr.corpus.preparation.disk import _sampled_bytes_per_row
from hebrew_asr.corpus.preparation.options import PrepareOptions
from hebrew_asr.corpus.preparation.parts import Record, read_part, write_part
from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.sources import Row
from hebrew_asr.sources.folder import ListedUnit
from tests.support import corpora

UNIT = ListedUnit("set", 0, 0, False, ())
TEXT = "שלום לכולם וברוכים הבאים"


def convert(row: Row, *, held_out: bool = False, **options) -> list[Record]:
    unit = ListedUnit("set", 0, 0, held_out, ())
    return [record for record, _ in convert_row(row, unit, 0, PrepareOptions(**options))]


def fate_of(text: str = TEXT, *, seconds: float = 2.0, content: bytes | None = None, **fields) -> str:
    options = fields.pop("options", {})
    row = Row("r", text, corpora.speech(1, seconds) if content is None else content, **fields)
    (record,) = convert(row, **options)
    return record.reason or record.fate


def test_a_good_clip_is_kept():
    row = Row("r", "שָׁלוֹם לְכֻלָּם,\u200f בָּרוּךְ הַבָּא", corpora.speech(1), groups=("uuid:r",))
    (record,) = convert(row)
    assert (record.fate, record.id, record.transcript) == ("kept", "set/r", "שלום לכלם, ברוך הבא")
    assert record.duration_s == pytest.approx(2.0, abs=0.01)
    assert record.words == "שלום לכלם ברוך הבא"
    assert record.audio == "clips/set/00000/000000.flac"


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("flagged noisy", {"flags": ("noisy", "skipped")}),
        ("no text", {"text": " \u200f "}),
        ("no text", {"text": "[מוזיקה]"}),
        ("no Hebrew letter", {"text": "hello everybody 123"}),
        ("too short", {"seconds": 0.4, "text": "כן"}),
        ("too long", {"seconds": 15.1, "text": "מילים " * 20}),
        ("too few characters per second", {"seconds": 6.0, "text": "כן"}),
        ("too many characters per second", {"seconds": 1.0, "text": "מילים רבות מדי " * 3}),
        ("undecodable audio", {"content": b""}),
        ("undecodable audio", {"content": b"\xff\xfb\x90broken mp3" * 40}),
        ("silent audio", {"content": corpora.encode(np.zeros(32_000, np.float32), audio="wav")}),
        ("truncated audio", {"stated_duration_s": 4.0}),
        ("kept", {"stated_duration_s": 2.1}),
        ("kept", {"seconds": 2.0, "text": "כן"}),
        ("kept", {"flags": ("noisy",), "options": {"drop_flags": ()}}),
        ("kept", {"seconds": 20.0, "text": "מילים " * 20, "options": {"max_duration_s": 30.0}}),
    ],
)
def test_reasons(expected, changes):
    assert fate_of(**changes) == expected


@pytest.mark.parametrize("audio", ["wav", "flac", "mp3", "ogg", "opus"])
def test_truncated_files_are_noticed(audio):
    rate_hz = 48_000 if audio == "opus" else 44_100
    whole = corpora.encode(corpora.voice(1, 3.0, rate_hz), rate_hz, audio)
    half = whole[: len(whole) // 2]
    assert fate_of(content=whole, text=TEXT) == "kept"
    assert fate_of(content=half, text=TEXT) in ("truncated audio", "undecodable audio")


def test_a_wav_from_a_pipe_states_no_length():
    wav = bytearray(corpora.speech(1, audio="wav"))
    wav[4:8] = b"\xff\xff\xff\xff"
    assert fate_of(content=bytes(wav)) == "kept"


@pytest.mark.parametrize(
    ("audio", "rate_hz", "channels"),
    [
        ("wav", 8_000, 1),
        ("wav", 11_025, 2),
        ("flac", 96_000, 1),
        ("mp3", 48_000, 2),
        ("ogg", 22_050, 2),
        ("opus", 48_000, 1),
    ],
)
def test_rates_and_channels(audio, rate_hz, channels):
    content = corpora.encode(corpora.voice(1, 2.0, rate_hz, channels), rate_hz, audio)
    (record,) = convert(Row("r", TEXT, content))
    assert record.fate == "kept"
    assert record.duration_s == pytest.approx(2.0, abs=0.05)


def test_the_fingerprint_is_of_the_samples_not_of_the_file():
    samples = to_int16(corpora.voice(1, 2.0, 16_000))  # from floats the containers would round differently
    files = [corpora.encode(samples, 16_000, audio) for audio in ("wav", "flac")]
    records = [convert(Row("r", TEXT, content), audio=audio)[0] for content in files for audio in ("wav", "flac")]
    assert len({record.fingerprint for record in records}) == 1
    (held_out,) = convert(Row("r", TEXT, files[0]), held_out=True)
    assert held_out.fingerprint == records[0].fingerprint
    assert convert(Row("r", TEXT, corpora.speech(2)))[0].fingerprint != records[0].fingerprint


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_encoding_is_lossless(audio):
    pcm = np.random.default_rng(1).integers(-32768, 32768, 16_000).astype(np.int16)
    content = encode(pcm, audio)
    assert np.array_equal(np.round(decode(content) * 32768).astype(np.int16), pcm)
    assert fingerprint(pcm, content, audio) == fingerprint(pcm, encode(pcm, "wav"), "wav")


def test_recital_rows_are_cut_and_their_leftovers_listed():
    text = corpora.timed(
        (0, 4, "מילים ראשונות כאן"), (4.1, 8, "hello everyone"), (12, 15, "ועוד מילים"), dangling_s=15.2
    )
    row = Row("r", text, corpora.encode(corpora.voice(1, 20.0, 16_000), 16_000), ("session:e",), timed=True)
    first, last = convert(row)
    assert (first.id, first.transcript) == ("set/r#00", "מילים ראשונות כאן hello everyone")
    assert (last.id, last.transcript, last.fate) == ("set/r#01", "ועוד מילים", "kept")
    assert last.audio == "clips/set/00000/000000-01.flac"
    assert last.duration_s == pytest.approx(3.0 + 0.2 + 0.2, abs=0.001)
    assert not first.whole and first.groups == ("session:e",)
    (malformed,) = convert(Row("r", "לפני<|0.00|>אחרי<|1.00|>", row.audio, timed=True))
    assert (malformed.reason, malformed.fate) == ("malformed timestamps", "dropped")
    (open_end,) = convert(Row("r", "<|0.00|>בלי סוף", row.audio, timed=True))
    assert open_end.reason == "no closed segment"


def test_public_test_sources_are_held_out_wherever_they_are():
    (record,) = convert(Row("r", TEXT, corpora.speech(1), groups=("source:Mindset",)))
    assert (record.fate, record.audio) == ("held out", "")
    (record,) = convert(Row("r", TEXT, b"broken"), held_out=True)
    assert record.fate == "held out" and record.words and not record.fingerprint


def test_missing_audio_file_is_a_dropped_clip(tmp_path):
    assert fate_of(content=str(tmp_path / "gone.wav")) == "undecodable audio"  # type: ignore[arg-type]


def test_parts_round_trip(tmp_path):
    records = [Record("kept", "a", 0, 1, groups=("uuid:x",), duration_s=1.5), Record("dropped", "b", 0, 2, reason="r")]
    write_part(tmp_path / "p" / "x.jsonl", records)
    assert read_part(tmp_path / "p" / "x.jsonl") == records
    (tmp_path / "bad.jsonl").write_text('{"fate": "kept", "unknown": 1}')
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        read_part(tmp_path / "bad.jsonl")


def test_impossible_options_are_reported_at_once():
    options = PrepareOptions(source=(), processes=0, eval_fraction=1.0, min_duration_s=20, recut_max_s=31)
    with pytest.raises(UsageError) as caught:
        options.check()
    for name in ("--source", "--processes", "--eval-fraction", "--min-duration-s", "--recut-max-s"):
        assert name in str(caught.value)


@pytest.mark.parametrize("address", ["node1:8786", "tcp://node1", "tcp://node1:99999", "tcp://node1:0"])
def test_an_address_that_no_scheduler_has_is_refused(address):
    with pytest.raises(UsageError, match="is no address of a scheduler"):
        PrepareOptions(workers_on=address).check()
    PrepareOptions(workers_on="tcp://node1:65535").check()


def test_rows_that_foretold_the_disk_space_are_not_converted_again(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(convert_module, "decode", lambda source, **more: heard.append(source) or decode(source, **more))
    rows = tuple(Row(f"r{seed}", TEXT, corpora.speech(seed)) for seed in range(2))
    unit, options = ListedUnit("set", 0, 0, False, rows), PrepareOptions()
    for folder in ("sampled", "fresh"):
        (tmp_path / folder / ".work").mkdir(parents=True)
    _sampled_bytes_per_row(unit, options, tmp_path / "sampled/.work")
    for folder in ("sampled", "fresh"):
        convert_unit(unit, options, tmp_path / folder, tmp_path / folder / ".work")
        assert len(heard) == {"sampled": 2, "fresh": 4}[folder]
    assert corpora.tree_of(tmp_path / "sampled/clips") == corpora.tree_of(tmp_path / "fresh/clips") != {}
    # A process may outlive what it read: other content at the same place is converted.
    _sampled_bytes_per_row(unit, options, tmp_path / "sampled/.work")
    other = ListedUnit("set", 0, 0, False, tuple(reversed(rows)))
    convert_unit(other, options, tmp_path / "sampled", tmp_path / "sampled/.work")
    first, second = corpora.tree_of(tmp_path / "fresh/clips").values()
    assert list(corpora.tree_of(tmp_path / "sampled/clips").values()) == [second, first]
