"""An object store of this machine, moto's server, behind a proxy that loses some of what it is asked for."""

from __future__ import annotations

import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hebrew_asr.launching.processes import free_port

BUCKET = "sound"
SECRET = "of-this-test-alone"
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) /")


class LossyProxy(socketserver.ThreadingTCPServer):
    """Passes requests on. Of twenty one is dropped with its connection, before or amid its answer; the tenth stalls."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, stall_s: float):
        """``port``: of the server behind it."""
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port, self.stall_s = port, stall_s
        self.requests = self.dropped = 0
        self._lock = threading.Lock()

    def fate(self) -> str:
        """Of the next request."""
        with self._lock:
            self.requests += 1
            number = self.requests
            fate = {7: "unanswered", 17: "cut"}.get(number % 40, "stalled" if number == 10 else "answered")
            self.dropped += fate in ("unanswered", "cut")
            return fate

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that its client closes is no error."""


class _Connection(socketserver.BaseRequestHandler):
    server: LossyProxy

    def handle(self) -> None:
        behind = socket.create_connection(("127.0.0.1", self.server.port))
        self._cuts = False
        threading.Thread(target=self._answer, args=[behind], daemon=True).start()
        with behind:
            while content := self.request.recv(1 << 16):
                fate = self.server.fate() if _REQUEST.match(content) else "answered"
                if fate == "unanswered":
                    return
                if fate == "stalled":
                    time.sleep(self.server.stall_s)
                self._cuts = fate == "cut"
                behind.sendall(content)

    def _answer(self, behind: socket.socket) -> None:
        try:
            while content := behind.recv(1 << 16):
                self.request.sendall(content[: len(content) // 2] if self._cuts else content)
                if self._cuts:
                    self.request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@dataclass
class Store:
    """A bucket, how to reach it, and the proxy before it."""

    proxy: LossyProxy
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment of whoever reads from it."""

    @property
    def url(self) -> str:
        """Of the bucket."""
        return f"s3://{BUCKET}"


@contextmanager
def object_store(folder: Path, stall_s: float = 10.0) -> Iterator[Store]:
    """A store that holds the files of a folder."""
    import s3fs

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET},
    )
    try:
        _wait_for(port, server)
        here = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "eu-west-1"}
        system = s3fs.S3FileSystem(key="test", secret=SECRET, client_kwargs=here, skip_instance_cache=True)
        system.mkdir(BUCKET)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                system.pipe_file(f"{BUCKET}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        with LossyProxy(port, stall_s) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            variables = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "eu-west-1",
            }
            try:
                yield Store(proxy, variables)
            finally:
                proxy.shutdown()
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "moto's server does not start"
            time.sleep(0.1)
