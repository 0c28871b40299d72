"""``prepare`` from a URL: a server that drops and stalls requests, and what cannot be read, by name."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from hebrew_asr import remote
from hebrew_asr.cli import main
from tests.support import corpora
from tests.support.tiny_task import ROOT

pytest.importorskip("aiohttp", reason="an extra: pip install 'hebrew-asr[remote]'")
pytestmark = pytest.mark.integration

_PREPARE = """
import sys
import hebrew_asr.remote as remote
from hebrew_asr.cli import main
remote.STALL_S, remote.PAUSE_S = 2, 0.01
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""


class _Faulty(SimpleHTTPRequestHandler):
    """Serves ranges of files. Of twenty requests one is cut off half-way; the thirtieth stalls."""

    requests = 0
    faults = 0

    def send_head(self) -> Any:
        """The file, or the range of it that is asked for."""
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if path.is_dir() or not path.is_file():
            return super().send_head()
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        first, last = (int(found[1]), int(found[2] or len(content) - 1)) if found else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        return io.BytesIO(part)

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]
        """Send it, or half of it."""
        content, kind = source.read(), type(self)
        kind.requests += 1
        if kind.requests % 20 == 7 or kind.requests == 30:
            kind.faults += 1
            outputfile.write(content[: len(content) // 2])
            time.sleep(10 if kind.requests == 30 else 0)
            self.close_connection = True
        else:
            outputfile.write(content)

    def log_message(self, format: str, *_: Any) -> None:
        """Not shown."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, type[_Faulty]]]:
    handler = type("Handler", (_Faulty,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()  # else a request waits for an answer, instead of being refused


def prepare(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(_PREPARE)
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
        assert handler.faults > 2 and done.stderr.count("reading it again") >= handler.faults - 1
        assert "no answer in 2 s; reading it again" in done.stderr
        assert corpora.tree_of(tmp_path / "there") == corpora.tree_of(tmp_path / "here")

        monkeypatch.setattr(remote, "STALL_S", 2)
        monkeypatch.setattr(remote, "PAUSE_S", 0.01)

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
