"""Texts go in and out as UTF-8, and file names are what they are, whatever the locale says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from rich.table import Table

from hebrew_asr.streams import can_redraw, print_table
from tests.support.tiny_task import ROOT

NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def hebrew_asr(*arguments: str | bytes, text: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command where Python would choose ASCII."""
    line = [sys.executable, "-m", "hebrew_asr.cli", *arguments]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    variables |= {**NO_UTF8, **environment}
    return subprocess.run(line, env=variables, cwd=ROOT, input=text, capture_output=True, check=False)


@pytest.mark.parametrize("encoding", [{}, {"PYTHONIOENCODING": "latin-1:strict"}])
def test_texts_and_names_are_utf_8_whatever_the_locale(tmp_path, encoding):
    folder = tmp_path / "הקלטות"
    folder.mkdir()
    done = hebrew_asr("audit", str(folder), **encoding)
    assert done.returncode == 3
    assert f"manifest not found: {folder}/train.jsonl" in done.stderr.decode() and b"Traceback" not in done.stderr
    samples = np.zeros(8000, np.int16)
    soundfile.write(folder / "שלום.wav", samples, 16_000)
    (folder / "train.jsonl").write_text('{"audio": "שלום.wav", "text": "שָׁלוֹם"}\n', encoding="utf-8")
    done = hebrew_asr("audit", str(folder), **encoding)
    assert (
        done.returncode == 1 and "שלום.wav#1" in done.stdout.decode() and f"{folder}/audit.html" in done.stdout.decode()
    )
    assert "שלום.wav" in (folder / "audit.json").read_text(encoding="utf-8")


def test_a_name_that_is_not_utf_8_is_told_without_a_traceback(tmp_path):
    done = hebrew_asr("audit", os.fsencode(tmp_path) + b"/\xf9\xec")
    assert done.returncode == 3 and rb"\udcf9\udcec/train.jsonl" in done.stderr and b"Traceback" not in done.stderr


def test_normalize_reads_and_writes_utf_8_and_refuses_what_is_not():
    done = hebrew_asr("normalize", text="שָׁלוֹם, ב־2024!\n".encode())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "שלום ב2024\n", b"")
    done = hebrew_asr("normalize", text="כן\n".encode() + "שלום\n".encode("cp1255"))
    assert (done.returncode, done.stdout.decode()) == (3, "כן\n")
    assert done.stderr == b"error: standard input: line 2 is not UTF-8; convert it with iconv first\n"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which ``$H`` is the command."""
    variables = {**os.environ, "H": f"{sys.executable} -m hebrew_asr.cli"}
    return subprocess.run(["bash", "-c", line], env=variables, cwd=ROOT, capture_output=True, text=True, check=False)


def test_closed_streams_are_empty_ones(tmp_path):
    done = shell("$H normalize <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("echo שלום! | $H normalize 2>&-")
    assert (done.returncode, done.stdout) == (0, "שלום\n")
    told = "error: standard output is closed: give it a file, or /dev/null for what nobody reads\n"
    for line in ("echo שלום | $H normalize", "$H score <(echo א) <(echo א)", "$H --version", "$H plan --help"):
        done = shell(f"{line} >&-")
        assert (done.returncode, done.stderr) == (4, told), line
    for place in ("&-", "/dev/full"):
        done = shell(f"PYTHONUNBUFFERED= $H plan --ds cpu --json >{place}")  # which would fail when it prints
        assert done.returncode == 4 and "needs" in done.stderr and done.stderr.count("\n") == 1, "its own error is told"
    code = "from hebrew_asr.streams import speak_utf8; speak_utf8(); f = open('first', 'w'); f.write(f'{f.fileno()}')"
    done = shell(f'cd {tmp_path}; PYTHONPATH={ROOT} {sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.returncode == 0
    assert int((tmp_path / "first").read_text()) > 2, "what a library prints would go into the file"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_told(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for line in ("echo שלום | $H normalize", "$H score <(echo א) <(echo א)", "$H --version", "$H plan --help"):
        done = shell(f"{line} > /dev/full")
        told = "error: standard output: No space left on device; make room there, or give another place\n"
        assert (done.returncode, done.stderr) == (4, told)


def test_a_reader_that_leaves_is_no_error():
    done = shell("$H score <(echo א) <(echo א) | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_bars_and_views_are_for_terminals_that_can_draw_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    leader, follower = os.openpty()
    with os.fdopen(leader), os.fdopen(follower, "w") as terminal, (tmp_path / "log").open("w") as file:
        for name, can in (("xterm-256color", True), ("", True), ("dumb", False)):
            monkeypatch.setenv("TERM", name)
            assert (can_redraw(terminal), can_redraw(file)) == (can, False)


@pytest.mark.parametrize("width", [20, 200])
def test_a_table_shows_names_as_they_are(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["exp[v2]", "runs[/red]x", "a:smile:b"]
    table = Table("[run] of the table")
    for name in names:
        table.add_row(name)
    print_table(table)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
