"""The server by the official client and by raw requests: answers, refusals in words, and that it goes on serving."""

from __future__ import annotations

import io
import json
import queue
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile

from hebrew_asr.demo.synthesis import Voice, full_sentences, speak
from hebrew_asr.errors import DataError
from hebrew_asr.inference.long_form import Transcript
from hebrew_asr.serving.app import Limits
from hebrew_asr.serving.line import Ending, Job, Line
from tests.support.served import RATE, Measuring, served, wav

pytestmark = pytest.mark.integration

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
    import openai  # half a thousand modules, which every worker would load when it collects the tests

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN)
    sound, text = ("a.wav", wav(said)), str(len(said))
    ask = client.audio.transcriptions.create
    assert ask(model="demo", file=sound).text == text
    verbose = ask(model="demo", file=sound, response_format="verbose_json", language="en", prompt="names")
    assert (verbose.text, verbose.language, verbose.segments[0].start >= 0) == (f"{text} names", "en", True)
    assert verbose.duration == pytest.approx(len(said) / RATE, abs=1e-3)
    (segment,) = verbose.segments
    assert {*type(segment).model_fields} <= {*segment.model_dump()}, "no field of the client's type is missing"
    assert bytes(segment.tokens).decode() == segment.text and segment.seek == round(100 * segment.start)
    assert segment.temperature == 0 and 0 < segment.compression_ratio < 2
    assert segment.avg_logprob is segment.no_speech_prob is None, "not known, so no number"
    assert "--> 00:00:0" in ask(model="demo", file=sound, response_format="srt")
    assert ask(model="demo", file=sound, response_format="vtt").startswith("WEBVTT")
    assert ask(model="demo", file=sound, response_format="text").strip() == text
    events = list(ask(model="demo", file=sound, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1].text == text
    assert [model.id for model in client.models.list()] == [client.models.retrieve("demo").id] == ["demo"]
    with pytest.raises(openai.NotFoundError, match="no model of this name here, only demo"):
        client.models.retrieve("whisper-1")
    with pytest.raises(openai.UnprocessableEntityError, match="Klingon"):
        ask(model="demo", file=sound, language="Klingon")


def test_a_slash_at_the_end_of_an_address_changes_nothing(url, said):
    headers, files = {"Authorization": f"Bearer {TOKEN}"}, {"file": ("a.wav", wav(said))}
    answer = httpx.post(f"{url}/v1/audio/transcriptions/", files=files, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"text": str(len(said))})
    found = httpx.get(f"{url}/v1/models/", headers=headers)
    assert (found.status_code, found.json()["data"][0]["id"]) == (200, "demo")


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
        "words without brackets": (422, post(url, good, timestamp_granularities="word")),
        "other times": (422, post(url, good, **{"timestamp_granularities[]": "character"})),
        "language": (422, post(url, good, language="xx")),
        "stream": (422, post(url, good, stream="perhaps")),
        "stream of srt": (422, post(url, good, stream="true", response_format="srt")),
        "stream of vtt": (422, post(url, good, stream="true", response_format="vtt")),
        "no temperature": (422, post(url, good, temperature="abc")),
        "cold": (422, post(url, good, temperature="-5")),
        "hot": (422, post(url, good, temperature="99")),
        "nan": (422, post(url, good, temperature="nan")),
        "prompt": (422, post(url, good, prompt="מילה " * 100_000)),
        "too large": (413, post(url, bytes(2 << 20))),
        "no token": (401, post(url, good, token="guess")),
        "another case": (401, post(url, good, token=TOKEN.swapcase())),
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
    assert post(url, good, temperature="0.2").json()["text"] == str(len(said))


def test_schemes_and_media_types_are_the_same_in_any_case(url, said):
    head = b'--y\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    headers = {"Authorization": f"bearer {TOKEN}", "Content-Type": "Multipart/Form-Data; boundary=y"}
    answer = httpx.post(f"{url}/v1/audio/transcriptions", content=head + wav(said) + b"\r\n--y--\r\n", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"text": str(len(said))})


def test_a_site_that_lets_its_name_lead_here_reads_nothing(said):
    def answer(url: str, host: str | None) -> httpx.Response:
        files = {"file": ("a.wav", wav(said))}
        named = {} if host is None else {"Host": host, "Origin": f"http://{host}"}
        return httpx.post(f"{url}/v1/audio/transcriptions", files=files, headers=named, timeout=30)

    with served(Limits(hosts=("localhost", "127.0.0.1", "::1"))) as url:
        port = url.rpartition(":")[2]
        for host in (None, "localhost", f"LocalHost:{port}", f"127.0.0.1:{port}", "[::1]", f"[::1]:{port}"):
            assert answer(url, host).json() == {"text": str(len(said))}, host
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[::1",
        ):
            refused = answer(url, host)
            assert refused.status_code == 403 and "no name of this server" in refused.json()["error"]["message"], host
        for path in ("/", "/health", "/v1/models"):
            assert httpx.get(f"{url}{path}", headers={"Host": "evil.example"}).status_code == 403
    with served(Limits()) as url:
        assert answer(url, "behind.a.proxy").json() == {"text": str(len(said))}


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


@pytest.mark.parametrize("length", ["Content-Length: 500000000", "Transfer-Encoding: chunked"])
def test_half_a_gigabyte_is_refused_before_it_has_come(url, said, length):
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(head.encode())
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        sent = 0
        while not select.select([client], [], [], 0.01)[0]:
            assert sent < 100 << 20, "it goes on reading"
            client.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n" if "chunked" in length else part)
            sent, part = sent + len(part), bytes(1 << 16)
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert post(url, wav(said)).status_code == 200


class Slow(Measuring):
    """Stops after some pieces until it may go on, then takes its time for each batch; it counts the pieces it heard."""

    def __init__(self, stops_after: int, batch_s: float = 1.0):
        super().__init__()
        self.stops_after, self.batch_s, self.pieces, self.may_go = stops_after, batch_s, 0, threading.Event()

    def in_language(self, language):
        return self

    def hear(self, clips, contexts=()):
        if self.pieces >= self.stops_after:
            self.may_go.wait(20)
            time.sleep(self.batch_s)
        self.pieces += len(clips)
        return super().hear(clips, contexts)


def test_a_stream_whose_client_has_gone_is_given_up(said):
    pause, model = np.zeros(5 * RATE, np.float32), Slow(1)
    sound = wav(np.concatenate([part for _ in range(60) for part in (said, pause)]))
    with served(Limits(), model) as url:
        address = f"{url}/v1/audio/transcriptions"
        with httpx.stream("POST", address, files={"file": ("a.wav", sound)}, data={"stream": "true"}) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        # The server sees the end of the connection within the seconds that two batches take.
        model.may_go.set()
        assert post(url, wav(said)).json() == {"text": str(len(said))}
    assert 1 < model.pieces < 45, "all 60 pieces were decoded for nobody"


def test_a_client_that_has_gone_is_noticed_though_segments_come_all_the_time(said):
    pause, model = np.zeros(5 * RATE, np.float32), Slow(0, 0.4)
    sound = wav(np.concatenate([part for _ in range(60) for part in (said, pause)]))
    model.may_go.set()
    with served(Limits(), model) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", sound)}, timeout=1)
        assert post(url, wav(said)).json() == {"text": str(len(said))}
    assert 1 < model.pieces < 45, "all 60 pieces were decoded for nobody"


def test_the_line_closes_every_upload_and_ends_without_waiting_for_the_model(said):
    outcomes: queue.Queue = queue.Queue()

    def job(content: bytes) -> Job:
        return Job(io.BytesIO(content), "a.wav", "Hebrew", "", lambda _segment: None, outcomes.put)

    line = Line(Measuring(), most_waiting=2, batch_pieces=2)
    jobs = [job(wav(said)), job(b"text")]
    for each in jobs:
        assert line.add(each)
    told = [outcomes.get(timeout=20) for _ in jobs]
    assert isinstance(told[0], Transcript) and isinstance(told[1], DataError)
    assert all(each.sound.closed for each in jobs)

    model = Slow(0)
    line = Line(model, most_waiting=2, batch_pieces=1)
    assert line.add(job(wav(said)))
    assert line.add(job(wav(said)))
    line.end()
    late = job(wav(said))
    assert line.add(late) and late.sound.closed
    model.may_go.set()
    assert all(isinstance(outcomes.get(timeout=20), Ending) for _ in range(3))
    time.sleep(3)  # the model's thread finds that the jobs are canceled
    assert outcomes.empty(), "a job has one outcome"
