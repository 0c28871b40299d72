"""A clip is as long as its manifest says, or unreadable; whatever its decoder does costs one clip and little memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audit import clips
from hebrew_asr.data import clip_audio
from hebrew_asr.data.clip_audio import Unreadable, read_ahead, read_clip
from hebrew_asr.data.manifest import Clip
from tests.support import corpora


def clip(path: Path, stated_s: float) -> Clip:
    return Clip(str(path), "language Hebrew<asr_text>שלום", "a:b", stated_s)


def written(path: Path, lasts_s: float, rate_hz: int = SAMPLE_RATE_HZ, **format: str) -> Path:
    samples = corpora.voice(1, lasts_s, rate_hz)
    soundfile.write(path, samples, rate_hz, **format)
    return path


FORMATS = {
    "wav": ({}, 0.02),
    "flac": ({}, 0.02),
    "mp3": ({}, 0.1),
    "ogg": ({"format": "OGG", "subtype": "OPUS"}, 0.1),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_length_that_the_manifest_does_not_say_is_unreadable(tmp_path, name, rate_hz):
    settings, tolerance_s = FORMATS[name]
    path = written(tmp_path / f"x.{name}", 2.0, rate_hz, **settings)
    for off_s in (0.0, 0.9 * tolerance_s, -0.9 * tolerance_s):
        samples = read_clip(clip(path, 2.0 + off_s))
        assert isinstance(samples, np.ndarray) and len(samples) == pytest.approx(2 * SAMPLE_RATE_HZ, abs=2)
    for off_s, told in ((1.1 * tolerance_s, "lasts 2.00 s"), (-1.1 * tolerance_s, "lasts longer"), (-1.5, "0.50 s")):
        found = read_clip(clip(path, 2.0 + off_s))
        assert isinstance(found, Unreadable) and found.clip_id == "a:b"
        assert told in found.reason and "manifest says" in found.reason and str(path) in found.reason


def test_a_file_far_longer_than_stated_takes_no_memory(tmp_path):
    path = tmp_path / "hour.flac"
    soundfile.write(path, np.zeros(1_200 * SAMPLE_RATE_HZ, np.int16), SAMPLE_RATE_HZ)
    tracemalloc.start()
    found = read_clip(clip(path, 1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, Unreadable) and "longer than the 1.00 s" in found.reason
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("device\nlost"),
        ValueError("Maximum allowed dimension exceeded"),
        TypeError("no format"),
    ],
)
def test_any_exception_of_a_decoder_is_the_clips_and_named(monkeypatch, tmp_path, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(clip_audio, "decode", fails)
    found = read_clip(clip(tmp_path / "x.wav", 1.0))
    assert isinstance(found, Unreadable)
    assert type(error).__name__ in found.reason and "x.wav" in found.reason and "\n" not in str(found)


@pytest.mark.parametrize("make", ["folder", "missing", "raw", "empty", "head", "loop"])
def test_what_is_no_sound_is_unreadable(tmp_path, make):
    path = tmp_path / ("x.raw" if make == "raw" else "x.wav")
    if make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    elif make != "missing":
        path.write_bytes({"raw": bytes(1000), "empty": b"", "head": b"RIFF\xff\xff\xff\xffWAVEfmt "}[make])
    found = read_clip(clip(path, 1.0))
    assert isinstance(found, Unreadable) and str(path) in found.reason


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    path = tmp_path / os.fsdecode(b"\xf9\xec.wav")
    path.write_bytes(corpora.encode(corpora.voice(1, 0.5, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, "wav"))
    assert len(read_clip(clip(path, 0.5))) == SAMPLE_RATE_HZ // 2


def test_an_audit_names_what_a_decoder_raises_too(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(clips, "joined", fails)
    assert clips.measure(written(tmp_path / "x.wav", 0.5)).fault == "MemoryError: MemoryError"


def is_in_memory(path: Path, offset: int, size: int) -> bool:
    """Whether all pages of a stretch of a file, whose offset is a page's, are in the page cache."""
    with path.open("rb+") as file, mmap.mmap(file.fileno(), size, offset=offset) as mapped:
        place = ctypes.addressof(held := (ctypes.c_char * size).from_buffer(mapped))
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), pages) == 0
        del held
        return all(page & 1 for page in pages)


def test_stretches_of_shards_are_asked_for_together_and_faults_are_left_to_reading(tmp_path):
    shard, gone = tmp_path / "shard.parquet", tmp_path / "gone.parquet"
    with shard.open("wb") as file:
        file.write(bytes(8 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    places = [(str(shard), 1 << 20, 50_000), (str(gone), 0, 100), (str(tmp_path), 5, 5), (str(shard), 5 << 20, 50_000)]
    if is_in_memory(shard, 1 << 20, 50_000):
        pytest.skip("this file system keeps all files in memory")
    read_ahead(Clip(path, "", "", 1.0, "", offset, size) for path, offset, size in places)
    deadline = time.monotonic() + 10
    while not all(is_in_memory(shard, *place) for place in ((1 << 20, 50_000), (5 << 20, 50_000))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_in_memory(shard, 7 << 20, 50_000)
    assert isinstance(read_clip(Clip(str(gone), "", "", 1.0, "", 0, 100)), Unreadable)
