"""``prepare`` from a URL: a server that drops and stalls requests, and what cannot be read, by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hebrew_asr.cli import main
from hebrew_asr.remote import paths
from tests.support import corpora
from tests.support.lossy import served
from tests.support.tiny_task import ROOT

pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
pytestmark = pytest.mark.integration

SCRIPT = """
import sys
import hebrew_asr.remote.paths as remote
from hebrew_asr.cli import main
remote.STALL_S, remote.PAUSE_S = 2, 0.01
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""


def prepare(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), "--processes", "2", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=240
    )


def test_a_server_that_drops_and_stalls_gives_the_same_bytes(tmp_path, monkeypatch, capfd):
    corpora.write_crowd(tmp_path / "served" / "v5", 96, shards=8, group=2)
    done = prepare(tmp_path, "--source", str(tmp_path / "served" / "v5"), "--out", str(tmp_path / "here"))
    assert done.returncode == 0, done.stderr
    with served(tmp_path / "served") as (address, handler):
        done = prepare(tmp_path, "--source", f"{address}/v5", "--out", str(tmp_path / "there"))
        assert done.returncode == 0, done.stderr
        assert handler.faults > 2 and done.stderr.count("reading it again (1 of 8 tries failed)") > 1
        assert "no answer in 2 s; reading it again" in done.stderr
        assert corpora.tree_of(tmp_path / "there") == corpora.tree_of(tmp_path / "here")

        monkeypatch.setattr(paths, "STALL_S", 2)
        monkeypatch.setattr(paths, "PAUSE_S", 0.01)

        def refused(source: str) -> tuple[int, str]:
            code = main(["prepare", "--source", source, "--out", str(tmp_path / "none")])
            return code, capfd.readouterr().err

        code, told = refused(f"{address}/v6")
        assert code == 3 and f"{address}/v6 is not there" in told
    code, told = refused(address.replace("//", "//user:secret@") + "/v5/?token=secret")
    assert code == 4 and "cannot be read, 8 tries failed, the last by Client" in told, told
    assert "secret" not in told and "Traceback" not in told
    code, told = refused("gopher://127.0.0.1/v5")
    assert code == 2 and "gopher://127.0.0.1/v5: " in told
    code, told = refused("hf://datasets/ivrit-ai/eval-d1@main/data")
    assert code == 2 and "is a public test set" in told
