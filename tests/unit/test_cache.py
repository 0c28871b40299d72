"""What is read from URLs is kept, whatever became of the cache's own files."""

from __future__ import annotations

import pytest

from hebrew_asr.remote.cache import cache_folder, read_stretch
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
