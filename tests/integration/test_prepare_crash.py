"""A file whose decoding ends its process is one dropped clip, and the others are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import corpora

pytestmark = pytest.mark.integration

# A decoder that crashes cannot be had at will, so what it does to its process is done here: a real signal.
_PREPARE = """
import os, sys
from hebrew_asr.cli import main
import hebrew_asr.corpus.preparation.convert as convert
decode = convert.decode
def decode_or_die(source, **options):
    content = source if isinstance(source, bytes) else open(source, "rb").read()
    if b"crash here" in content:
        os.kill(os.getpid(), {signal})
    return decode(source, **options)
convert.decode = decode_or_die
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_file_that_ends_its_decoder_is_a_dropped_clip(tmp_path: Path, number: signal.Signals):
    (tmp_path / "own").mkdir()
    for index in range(32):
        content = corpora.encode(corpora.voice(index, 2.0, 16_000), 16_000, "flac")
        content += b"crash here" if index in (3, 26, 30) else b""  # the first also where the disk space is foretold
        (tmp_path / "own" / f"{index:02d}.flac").write_bytes(content)
        (tmp_path / "own" / f"{index:02d}.txt").write_text(corpora.sentence(index))
    script = tmp_path / "script.py"
    script.write_text(_PREPARE.format(signal=int(number)))
    options = ["--source", str(tmp_path / "own"), "--out", str(tmp_path / "out"), "--processes", "2"]
    command = [sys.executable, str(script), *options, "--eval-fraction", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if number == signal.SIGKILL:  # nobody can tell whether a row or want of memory was to blame
        assert done.returncode == 4 and "a worker process was killed" in done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr
    dropped = {row["id"]: (row["reason"], row["detail"]) for row in corpora.lines_of(tmp_path / "out/dropped.jsonl")}
    told = ("undecodable audio", "decoding it ends the process (SIGSEGV)")
    assert dropped == {"own/03.flac": told, "own/26.flac": told, "own/30.flac": told}
    assert len(corpora.lines_of(tmp_path / "out" / "train.jsonl")) == 29
