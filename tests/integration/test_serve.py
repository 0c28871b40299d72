"""``hebrew-asr serve`` as people start and end it: its own process, a real model, Ctrl-C in the middle of work."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import soundfile

from hebrew_asr.cli import main
from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.demo.tiny import save_tiny
from tests.support.tiny_task import SPEC, WORDS, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "hebrew_asr.cli", "serve", *options]


def minutes_of_speech() -> bytes:
    sentence = speak(full_sentences()[0].phonemes, Voice("m3", 180, 45))
    content = io.BytesIO()
    soundfile.write(content, np.tile(np.pad(sentence, (0, 16_000)), 300), 16_000, format="FLAC")
    return content.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_refuses_in_a_line_and_ends_at_once(tmp_path, capfd, number):
    def refusal(*options: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(["serve", *options])
        told = capfd.readouterr()
        assert told.out == ""
        return code, told.err

    save_tiny(tmp_path / "model", SPEC, [" ".join(WORDS)], 0)
    port, model = str(free_port()), str(tmp_path / "model")
    server = subprocess.Popen(
        command("-m", model, "--port", port, "-l", "he"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        assert server.stdout is not None and server.stderr is not None
        assert f"page {url}/, OpenAI's clients {url}/v1" in server.stdout.readline()
        assert '<html lang="he" dir="rtl">' in httpx.get(url).text
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403, "without a token, at 127.0.0.1"

        code, said = refusal("--model", model, "--port", port)
        assert (code, said.count("\n")) == (4, 1) and "Address already in use" in said
        code, said = refusal("--model", model, "--port", port, "--language", "Klingon")
        assert (code, said.count("\n")) == (2, 1) and "Klingon" in said, "the port was tried before the language"
        for token in ("", "סוד", "two words"):
            code, said = refusal("--model", model, "--port", port, "--token", token)
            assert (code, said.count("\n")) == (2, 1) and "--token" in said

        answers: list[httpx.Response] = []
        sound = {"file": ("long.flac", minutes_of_speech())}
        waiting = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/audio/transcriptions", files=sound, timeout=100))
        )
        waiting.start()
        uploading = socket.create_connection(("127.0.0.1", int(port)))
        uploading.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        time.sleep(3)  # the model is at work
        os.killpg(server.pid, number)
        assert server.wait(15) == 0
        waiting.join()
        uploading.close()
        assert (answers[0].status_code, "the server is ending" in answers[0].text) == (503, True)
        assert server.stderr.read() == ""
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
