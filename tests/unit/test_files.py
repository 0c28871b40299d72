"""Files are whole or absent, and UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hebrew_asr.files import write_atomically, write_json


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_what_does_not_fit_leaves_the_old_file_and_nothing_else(small_disk):
    write_atomically(small_disk / "a.txt", "שלום")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(small_disk / "a.txt", bytes(100_000))
    assert (small_disk / "a.txt").read_text(encoding="utf-8") == "שלום"
    assert [path.name for path in small_disk.iterdir()] == ["a.txt"]


def test_a_new_folder_and_any_name(tmp_path):
    name = os.fsdecode(b"\xf9\xec")
    write_json(tmp_path / "new" / name / "x.json", {"שם": name, "half": "\ud800"})
    written = (tmp_path / "new" / name / "x.json").read_bytes()
    assert json.loads(written.decode("utf-8")) == {"שם": name, "half": "\ud800"}
    assert "שם".encode() in written and [path.name for path in (tmp_path / "new" / name).iterdir()] == ["x.json"]
