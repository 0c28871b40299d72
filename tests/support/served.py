"""The server of ``hebrew-asr serve`` in this process, with a stand-in for the model."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile
import uvicorn

from hebrew_asr.inference.pieces import Cutting
from hebrew_asr.inference.transcriber import Heard
from hebrew_asr.serving.app import Limits, create_app
from hebrew_asr.serving.line import Line

RATE = 16_000


class Measuring:
    """Stands for the model: it says how many samples it heard, which tells recordings apart."""

    cutting = Cutting(30.0, 5.0)

    def __init__(self, language: str | None = "Hebrew"):
        self.language = language

    def in_language(self, language):
        return Measuring(language)

    def tokens(self, text):
        return [*text.encode()]

    def hear(self, clips, contexts=()):
        return [
            Heard(f"{len(clip)} {context}".strip(), self.language, False)
            for clip, context in zip(clips, contexts, strict=True)
        ]


@contextmanager
def served(limits: Limits, model=None) -> Iterator[str]:
    """The address of a server that answers until the block ends."""
    app = create_app(Line(model or Measuring(), most_waiting=64, batch_pieces=8), "demo", "he", limits)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # so that a client that comes before the thread waits
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wav(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="WAV")
    return content.getvalue()
