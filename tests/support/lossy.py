"""A server of files that loses some of what it is asked for."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import xxhash


class Faulty(SimpleHTTPRequestHandler):
    """Serves ranges of files. Of twenty requests one is cut off half-way; the tenth stalls."""

    requests = 0
    faults = 0
    sent_bytes = 0
    stall_s = 10.0

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
        self.send_header("ETag", f'"{xxhash.xxh3_64_hexdigest(content)}"')
        self.send_header("Content-Length", str(len(part)))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        return io.BytesIO(part)

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]
        """Send it, or half of it."""
        content, kind = source.read(), type(self)
        kind.requests += 1
        number = kind.requests
        if number % 20 == 7 or number == 10:
            kind.faults += 1
            content = content[: len(content) // 2]
            self.close_connection = True
        outputfile.write(content)
        kind.sent_bytes += len(content)
        if number == 10:
            time.sleep(self.stall_s)

    def log_message(self, format: str, *_: Any) -> None:
        """Not shown."""


@contextmanager
def served(folder: Path, **changes: Any) -> Iterator[tuple[str, type[Faulty]]]:
    """The address of a server of a folder, and what it counts. ``changes``: of the class's values."""
    handler = type("Handler", (Faulty,), changes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()  # else a request waits for an answer, instead of being refused
