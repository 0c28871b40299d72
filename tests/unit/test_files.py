"""Files are whole or absent, and UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hebrew_asr.errors import DataError
from hebrew_asr.files import from_json, temporary_folder, whole_folder, write_atomically, write_json


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


def test_a_temporary_folder_goes_whenever_a_signal_raises(tmp_path):
    """What stops a block may raise anywhere: before the folder is made, right behind that, and in the work."""

    @contextmanager
    def raising_as_it_begins() -> Iterator[None]:
        (folder / "deep").mkdir(parents=True)
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt), temporary_folder("x-", tmp_path) as folder:
        assert not folder.exists()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), temporary_folder("x-", tmp_path) as folder, raising_as_it_begins():
        pytest.fail("nobody may work in it")
    with pytest.raises(KeyboardInterrupt), temporary_folder("x-", tmp_path) as folder:
        write_json(folder / "deep" / "a.json", {})
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]


def test_a_new_folder_and_any_name(tmp_path):
    name = os.fsdecode(b"\xf9\xec")
    write_json(tmp_path / "new" / name / "x.json", {"שם": name, "half": "\ud800"})
    written = (tmp_path / "new" / name / "x.json").read_bytes()
    assert json.loads(written.decode("utf-8")) == {"שם": name, "half": "\ud800"}
    assert "שם".encode() in written and [path.name for path in (tmp_path / "new" / name).iterdir()] == ["x.json"]


@pytest.mark.parametrize("name", ["x" * 255, "ש" * 127, os.fsdecode(b"\xf9" * 255)])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    write_atomically(tmp_path / name, "שלום")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_appears_when_it_is_whole_and_keeps_what_else_was_in_it(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "private").write_text("mine")
    (outside / "private").chmod(0o600)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes").write_text("mine")
    (tmp_path / "made" / "figures").write_text("old")
    (tmp_path / ".tmp-made" / "half").mkdir(parents=True)  # one was killed
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path("made")) as folder:
        (folder / "figures").write_text("new")
        (folder / "figures").chmod(0o600)
        (folder / "set").symlink_to(outside)
        assert (tmp_path / "made" / "figures").read_text() == "old"
    found = {path.name: path.read_text() for path in Path("made").iterdir() if path.is_file()}
    assert found == {"notes": "mine", "figures": "new"} and Path("made/set").is_symlink()
    assert Path("made/figures").stat().st_mode & 0o077 and not (outside / "private").stat().st_mode & 0o077
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "outside"]


def test_a_folder_keeps_what_it_holds_and_not_what_one_that_was_killed_left_beside_it(tmp_path):
    """After the new folder was in its place, and the earlier one not yet removed; then between the two renames."""
    for path, content in {
        **{"made/readme": "edited", "made/inner/a": "a", "made/inner/b": "b"},
        **{".old-made/readme": "first", ".old-made/gone": "deleted since", ".old-made/inner/b": "first"},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    for _ in range(2):
        with whole_folder(tmp_path / "made") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "a").write_text("anew")
        held = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
        assert held == {"made/readme": "edited", "made/inner/a": "anew", "made/inner/b": "b"}
        (tmp_path / "made").rename(tmp_path / ".old-made")


def test_errors_name_the_folder_that_was_asked_for(small_disk, monkeypatch):
    monkeypatch.chdir(small_disk)
    for raised, told in (
        (DataError(f"{small_disk / '.tmp-made' / 'x'} is odd"), "made/x is odd"),
        (FileNotFoundError(2, "No such file", f"{small_disk / '.tmp-made' / 'x'}"), "'made/x'"),
        (Exception("I/O error (os error 28)"), "No space left on device: 'made'"),
    ):
        with pytest.raises((DataError, OSError)) as found, whole_folder(Path("made")):
            raise raised
        assert str(found.value).endswith(told)
    with pytest.raises(OSError, match="No space left on device: 'made/large'"), whole_folder(Path("made")) as folder:
        write_atomically(folder / "large", bytes(100_000))
    with pytest.raises(ValueError, match="no number"), whole_folder(Path("made")):
        raise ValueError("no number")
    assert not list(small_disk.iterdir())


def test_json_that_nests_without_end_is_an_error_of_values():
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="it nests too deep"):
            from_json(text, dict)
