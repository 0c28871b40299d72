"""``hebrew-asr serve``: a model behind the interface of OpenAI's transcriptions."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hebrew_asr.config.options import Language, ModelName
from hebrew_asr.config.values import Name, Port, PositiveInt

if TYPE_CHECKING:
    import socket


@dataclass
class Command:
    """Answer POST /v1/audio/transcriptions as OpenAI's clients send it, until Ctrl-C; also /v1/models and /health.

    A web page at / takes files or records, shows segments as they come, and saves subtitles; pages of other sites
    cannot read its answers: without --token, who asks on this machine must call it localhost, 127.0.0.1, ::1 or --host.
    Formats: json, text, verbose_json, srt, vtt; with stream=true, segments as they come.

    $ hebrew-asr serve --model runs/round2
    (then a browser at http://127.0.0.1:8000)
    $ hebrew-asr serve --model hebrew-model/hf --host 0.0.0.0 --token SECRET
    (for other machines too, whose clients must show the token)
    """

    model: ModelName
    """Folder or hub id of a Qwen3-ASR model, or the folder of a run, such as demo-run, or of an export."""
    host: Name = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in, so give --token too."""
    port: Port = 8000
    """At that address."""
    language: Language = "Hebrew"
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
        from hebrew_asr.languages import language_name
        from hebrew_asr.serving.listening import listen

        language_name(self.language)  # a mistake is told before torch is imported, which takes seconds
        _check_token(self.token)
        with listen(self.host, self.port) as listening:
            return self._serve(listening)

    def _serve(self, listening: socket.socket) -> int:
        from hebrew_asr.inference.progress import loading
        from hebrew_asr.streams import outlive_the_terminal

        with loading():
            from hebrew_asr.inference.load import load_transcriber
            from hebrew_asr.serving.app import Limits, create_app
            from hebrew_asr.serving.line import Line
            from hebrew_asr.serving.listening import address, is_loopback
            from hebrew_asr.serving.running import serve

            transcriber = load_transcriber(self.model, self.language, device=self.device, dtype=self.dtype)
        line = Line(transcriber, most_waiting=self.waiting, batch_pieces=self.batch)
        name = Path(self.model).resolve()
        shown = f"{name.parent.name}/{name.name}" if name.name == "final" else name.name
        is_open = not self.token and not is_loopback(listening)
        hosts = () if self.token or is_open else ("localhost", "127.0.0.1", "::1", self.host)
        app = create_app(line, shown, self.language, Limits(self.upload_mib, token=self.token, hosts=hosts))
        url = address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)
        outlive_the_terminal()
        print(f"serving {self.model}: page {url}/, OpenAI's clients {url}/v1 (Ctrl-C ends it)", flush=True)
        if is_open:
            print("warning: whoever reaches this machine can use it: --token asks for one", file=sys.stderr, flush=True)
        return serve(app, line, listening)


def _check_token(token: str | None) -> None:
    """Refuses what no client can show: an unset variable of a shell must not let everybody in.

    Raises:
        UsageError: it is empty, or a header cannot hold it.
    """
    from hebrew_asr.errors import UsageError

    if token is not None and not (token and all("!" <= character <= "~" for character in token)):
        raise UsageError("--token must be letters, digits and signs of ASCII, without spaces, and not empty")
