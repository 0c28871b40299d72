"""Run the application until a signal, and end at once: nobody waits for the model."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from hebrew_asr.serving.line import Line

_GRACE_S = 1
"""What an answer that is being written, or an upload, gets when the server ends."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, line: Line):
        super().__init__(config)
        self._line = line

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._line.end()
        # Uploads that outlast the grace are canceled, which uvicorn logs with a traceback each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def serve(app: Starlette, line: Line, listening: socket.socket) -> int:
    """Answer what comes to ``listening``, until Ctrl-C or SIGTERM.

    Does not return: the model's thread can be in the middle of a batch, and the interpreter would wait for those that
    read for it. The process leaves with code 0, which is how both are meant to end it.
    """
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, line).run(sockets=[listening])
    with contextlib.suppress(OSError):  # a terminal that is gone
        print("ended", flush=True)
        sys.stderr.flush()
    os._exit(0)
