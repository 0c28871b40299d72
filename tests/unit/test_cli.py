"""The command line: one table, light help, near misses told, a bare --resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hebrew_asr.cli import COMMANDS, guarded, main, with_bare_resume
from hebrew_asr.errors import DataError

COMMANDS_DIR = Path(__file__).parents[2] / "hebrew_asr" / "commands"


def test_every_subcommand_is_listed_and_exists(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name}" in listed
        assert "class Command" in (COMMANDS_DIR / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: hebrew-asr {name}" in capsys.readouterr().out


def test_a_near_miss_is_told(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_errors_become_one_line_and_a_code(capsys):
    def fail() -> int:
        raise DataError("audio file not found: x.wav")

    assert guarded(fail) == 3
    assert capsys.readouterr().err == "error: audio file not found: x.wav\n"
    assert guarded(fail, quiet=lambda _: True) == 3
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--resume"], ["--resume", "auto"]),
        (["--resume", "--set", "a=1"], ["--resume", "auto", "--set", "a=1"]),
        (["--resume", "never"], ["--resume", "never"]),
        (["--run", "x"], ["--run", "x"]),
    ],
)
def test_a_bare_resume_means_auto(given, meant):
    assert with_bare_resume(given) == meant


def test_a_reader_that_leaves_is_no_traceback():
    script = f"{sys.executable} -m hebrew_asr.cli normalize | head -n 1"
    lines = "שלום\n" * 50_000
    done = subprocess.run(["bash", "-c", script], input=lines, capture_output=True, text=True, check=False)
    assert done.stdout == "שלום\n"
    assert not done.stderr
