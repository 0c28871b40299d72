"""The server by the official client and by raw requests: answers, refusals in words, and that it goes on serving."""

from __future__ import annotations

import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import soundfile

from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.serving.app import Limits
from tests.support.served import RATE, served, wav

TOKEN = "secret"


@pytest.fixture(scope="module")
def url():
    with served(Limits(1, 2.0, TOKEN)) as address:
        yield address


@pytest.fixture(scope="module")
def said() -> np.ndarray:
    return speak(full_sentences()[0].phonemes, Voice("m3", 180, 45))


def post(url: str, content: bytes | None, *, token: str = TOKEN, **fields: str) -> httpx.Response:
    files = {} if content is None else {"file": ("a.wav", content)}
    return httpx.post(
        f"{url}/v1/audio/transcriptions",
        files=files or {"x": ("", b"")},
        data=fields,
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )


def test_official_client_gets_every_format(url, said):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN)
    sound, text = ("a.wav", wav(said)), str(len(said))
    ask = client.audio.transcriptions.create
    assert ask(model="demo", file=sound).text == text
    verbose = ask(model="demo", file=sound, response_format="verbose_json", language="en", prompt="names")
    assert (verbose.text, verbose.language, verbose.segments[0].start >= 0) == (f"{text} names", "en", True)
    assert verbose.duration == pytest.approx(len(said) / RATE, abs=1e-3)
    assert "--> 00:00:0" in ask(model="demo", file=sound, response_format="srt")
    assert ask(model="demo", file=sound, response_format="vtt").startswith("WEBVTT")
    assert ask(model="demo", file=sound, response_format="text").strip() == text
    events = list(ask(model="demo", file=sound, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == text
    assert [model.id for model in client.models.list()] == ["demo"]
    with pytest.raises(openai.UnprocessableEntityError, match="Klingon"):
        ask(model="demo", file=sound, language="Klingon")


def test_fifty_at_once_are_all_answered_and_none_mixed_up(url, said):
    sounds = [said[: len(said) - 100 * number] for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda sound: post(url, wav(sound)), sounds))
    assert [answer.status_code for answer in answers] == [200] * 50
    assert [answer.json()["text"] for answer in answers] == [str(len(sound)) for sound in sounds]


def test_bad_requests_are_refused_in_words_and_the_server_goes_on(url, said):
    good = wav(said)
    lying = bytearray(good)
    lying[40:44] = b"\xff\xff\xff\x7f"
    refused = {
        "no bytes": (422, post(url, b"")),
        "text": (422, post(url, "שלום".encode() * 100)),
        "noise": (422, post(url, np.random.default_rng(0).bytes(5000))),
        "head alone": (422, post(url, good[:44])),
        "cut": (422, post(url, good[:3000])),
        "not finite": (422, post(url, wav_of_nan())),
        "zip": (422, post(url, b"PK\x03\x04" + bytes(500))),
        "mp3 of nothing": (422, post(url, b"ID3" + bytes(500))),
        "mp4 of nothing": (422, post(url, b"\x00\x00\x00\x18ftypmp42" + bytes(500))),
        "no file": (422, post(url, None)),
        "format": (422, post(url, good, response_format="docx")),
        "words": (422, post(url, good, **{"timestamp_granularities[]": "word"})),
        "language": (422, post(url, good, language="xx")),
        "stream": (422, post(url, good, stream="perhaps")),
        "too large": (413, post(url, bytes(2 << 20))),
        "no token": (401, post(url, good, token="guess")),
        "json": (
            415,
            httpx.post(f"{url}/v1/audio/transcriptions", json={}, headers={"Authorization": f"Bearer {TOKEN}"}),
        ),
        "broken form": (
            422,
            httpx.post(
                f"{url}/v1/audio/transcriptions",
                content=b"--a\r\nnonsense",
                headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "multipart/form-data; boundary=b"},
            ),
        ),
    }
    assert {name: answer.status_code for name, (_, answer) in refused.items()} == {
        name: code for name, (code, _) in refused.items()
    }
    assert all(answer.json()["error"]["message"] for _, answer in refused.values())
    assert post(url, bytes(lying)).status_code in (200, 422)
    assert post(url, wav(np.zeros(RATE, np.float32))).json() == {"text": ""}
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert post(url, good).json()["text"] == str(len(said))


def wav_of_nan() -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.full(RATE, np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    return content.getvalue()


def test_slow_and_leaving_clients_hold_nobody_up(url, said):
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
    )
    slow, leaving = (socket.create_connection((host, int(port))) for _ in range(2))
    for client in (slow, leaving):
        client.sendall(head.encode())
    leaving.close()
    assert post(url, wav(said)).status_code == 200
    slow.settimeout(10)
    assert b" 408 " in slow.recv(4096)
    slow.close()
    assert json.loads(post(url, wav(said)).text)["text"] == str(len(said))
