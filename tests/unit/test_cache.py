"""What is read from URLs is kept, whatever became of the cache's own files."""

from __future__ import annotations

import os
import time

import pytest

from hebrew_asr.remote.cache import cache_folder, limit_cache, read_stretch
from tests.support.lossy import served


@pytest.mark.parametrize("left", [b"", bytes(20), b"12x"], ids=["none", "zeros", "half"])
def test_a_count_that_a_power_cut_spoiled_is_made_anew(left, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").write_bytes(bytes(range(1, 201)) * 50)
    lock = cache_folder() / "sound" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_bytes(left)
    with served(tmp_path / "set", requests=100) as (address, handler):
        first = read_stretch(f"{address}/a.parquet", 1000, 4000)
        asked = handler.requests
        assert first == (bytes(range(1, 201)) * 50)[1000:5000] == read_stretch(f"{address}/a.parquet", 1000, 4000)
        assert handler.requests == asked, "it is kept"
    assert 0 < int(lock.read_bytes()) < 2**20


@pytest.mark.parametrize("ahead_s", [-3600, 86_400], ids=["an hour ago", "tomorrow"])
def test_a_shard_that_nobody_reads_makes_room_though_a_clock_was_ahead(ahead_s, tmp_path, monkeypatch):
    """Its time to come kept it, and nothing else was, until the day of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HEBREW_ASR_CACHE_GIB", raising=False)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").write_bytes(bytes(range(1, 201)) * 50)
    old = cache_folder() / "sound" / "old"
    old.parent.mkdir(parents=True)
    for path in (old, old.with_suffix(".sums")):
        path.write_bytes(bytes(1 << 20))
        os.utime(path, (time.time() + ahead_s,) * 2)
    limit_cache(1 / 1024)
    with served(tmp_path / "set", requests=100) as (address, handler):
        read_stretch(f"{address}/a.parquet", 1000, 4000)
        asked = handler.requests
        read_stretch(f"{address}/a.parquet", 1000, 4000)
        assert handler.requests == asked, "it is kept"
    assert not old.exists()
