"""A Hugging Face hub in miniature: the few requests that ``huggingface_hub`` makes to pin and download a dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_fixture"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._refuse(404, "NotFound")

    do_HEAD = do_GET

    def _info(self, repo: str, revision: str) -> None:
        if repo not in self.server.repos:
            return self._refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        root = self.server.repos[repo]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        listed = [{"rfilename": str(path.relative_to(root)), "size": path.stat().st_size} for path in files]
        return self._reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": listed}).encode())

    def _file(self, repo: str, revision: str, name: str) -> None:
        if repo in self.server.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._refuse(403, "GatedRepo")
        assert revision == COMMIT, "a download that is not pinned"
        content = (self.server.repos[repo] / name).read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        return self._reply(content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def _reply(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    repos: dict[str, Path]
    gated: tuple[str, ...]


@contextmanager
def hub(repos: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve folders as datasets; yields the address for HF_ENDPOINT. ``gated`` ones want ``TOKEN``."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.repos, server.gated = repos, gated
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
