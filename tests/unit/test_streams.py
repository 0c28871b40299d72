"""Texts go in and out as UTF-8, and file names are what they are, whatever the locale says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

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
