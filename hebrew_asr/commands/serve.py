"""``hebrew-asr serve``: a model behind the interface of OpenAI's transcriptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hebrew_asr.config.values import Port, PositiveInt


@dataclass
class Command:
    """Answer POST /v1/audio/transcriptions as OpenAI's clients send it, until Ctrl-C; also /v1/models and /health.

    Formats: json, text, verbose_json, srt, vtt; with stream=true, segments as they are decoded. Requests that wait
    together are decoded together.
    """

    model: str
    """Folder or hub id of a Qwen3-ASR model, or the folder of a run, such as demo-run."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in, so give --token too."""
    port: Port = 8000
    language: str = "Hebrew"
    """Language of requests that name none, or auto."""
    token: str | None = None
    """Bearer token that clients must show."""
    upload_mib: PositiveInt = 512
    """Largest upload."""
    waiting: PositiveInt = 64
    """Requests that may wait; one more is answered 429."""
    batch: PositiveInt = 16
    """Pieces decoded together."""
    device: str = "auto"
    """Such as cpu, cuda or cuda:1; auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; auto is bfloat16 on a GPU and float32 on a CPU."""

    def run(self) -> int:
        import socket

        import uvicorn

        from hebrew_asr.errors import EnvironmentProblem
        from hebrew_asr.inference.load import load_transcriber
        from hebrew_asr.serving.app import Limits, create_app
        from hebrew_asr.serving.line import Line

        listening = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.host, self.port))
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot listen at {self.host}:{self.port}: {error.strerror}; choose another --port or --host"
            ) from error
        transcriber = load_transcriber(self.model, self.language, device=self.device, dtype=self.dtype)
        line = Line(transcriber, most_waiting=self.waiting, batch_pieces=self.batch)
        limits = Limits(self.upload_mib, token=self.token)
        app = create_app(line, Path(self.model).resolve().name, self.language, limits)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        print(f"serving {self.model} at http://{self.host}:{self.port}/v1 (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listening])
        return 0
