"""Standard output and error whose writes never fail, whatever becomes of the terminal, pipe or disk behind them."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """Writes to a file descriptor. What cannot be written is dropped."""

    def write(self, content: Any, /) -> int:
        """The number of bytes dealt with."""
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


def outlive_the_terminal() -> None:
    """From here on a write to stdout or stderr never fails: an ssh that drops must not end what it started."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(getattr(stream.buffer, "raw", None), _Lasting):
            setattr(sys, name, _lasting(stream))


def _lasting(stream: TextIO) -> TextIO:
    stream.flush()
    raw = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
