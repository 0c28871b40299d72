"""The web application: a page, ``/health``, and OpenAI's ``/v1/audio/transcriptions`` and ``/v1/models``."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import traceback
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hebrew_asr.errors import DataError, UsageError, shortened
from hebrew_asr.inference.formats import Format, as_values, formatted, segment_values
from hebrew_asr.inference.long_form import Segment, Transcript
from hebrew_asr.languages import language_name
from hebrew_asr.serving.line import Ending, Job, Line
from hebrew_asr.serving.page import page
from hebrew_asr.text.prompt import checked_context

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
SIDE_FILES = ("srt", "vtt", "txt")
"""What ``include[]`` of a streamed request can ask for: the whole transcript in these forms, with the last event."""
_GRANULARITIES = ("timestamp_granularities[]", "timestamp_granularities")  # with brackets from OpenAI's clients
_MiB = 1 << 20
_BEAT_S = 15.0
_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Event = tuple[Literal["segment"], Segment] | tuple[Literal["done"], Transcript | Exception]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    upload_mib: int = 512
    upload_s: float = 300.0
    """For the whole upload: a client that is slower is let go."""
    token: str | None = None
    """What clients must show as ``Authorization: Bearer …``; None lets everybody in."""
    hosts: tuple[str, ...] = ()
    """What clients may call this server in ``Host``, without the port; empty lets them call it anything."""


def create_app(line: Line, model: str, language: str, limits: Limits) -> Starlette:
    """The application.

    Args:
        line: where requests wait.
        model: its name in ``/v1/models``. Clients may name any.
        language: name or code of the language of requests that name none.
        limits: of requests.
    """
    service = _Service(line, model, language, limits)
    return Starlette(
        routes=[
            Route("/", service.page),
            *(Route(f"/v1/audio/transcriptions{end}", service.transcriptions, methods=["POST"]) for end in ("", "/")),
            *(Route(f"/v1/models{end}", service.models) for end in ("", "/")),
            Route("/v1/models/{name:path}", service.one_model),
            Route("/health", lambda _: JSONResponse({"status": "ok"})),
        ],
        middleware=[Middleware(_KnownHosts, limits.hosts)] if limits.hosts else [],
        exception_handlers={HTTPException: _refusal, Exception: _fault},
    )


class _KnownHosts:
    """Refuses requests that call the server by another name.

    A site can let its own name lead here once its page is loaded (DNS rebinding): to a browser that page is then one of
    this server's own, and may read its answers. What names no host is not from a browser.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self._app, self._hosts = app, {*map(str.lower, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or _without_port(host) in self._hosts:
            await self._app(scope, receive, send)
            return
        known = ", ".join(sorted(self._hosts))
        said = f"{shortened(host)!r} is no name of this server: ask {known}, or start it with --token"
        await _refusal(Request(scope), HTTPException(403, said))(scope, receive, send)


def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets around no address
        return ""


def _refusal(_request: Request, error: Exception) -> Response:
    refused = cast(HTTPException, error)
    kind = "server_error" if refused.status_code >= 500 else "invalid_request_error"
    body = {"error": {"message": refused.detail, "type": kind, "param": None, "code": refused.status_code}}
    return JSONResponse(body, refused.status_code, refused.headers)


def _fault(request: Request, _error: Exception) -> Response:
    return _refusal(request, HTTPException(500, "the server failed at this request; its log says where"))


class _Service:
    def __init__(self, line: Line, model: str, language: str, limits: Limits):
        self._line, self._model, self._language, self._limits = line, model, language, limits
        self._page = page(model, limits.upload_mib)

    async def page(self, _request: Request) -> Response:
        """Needs no token: it holds nothing but the model's name, and asks for one when the server does."""
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._described]})

    async def one_model(self, request: Request) -> Response:
        self._admit(request)
        if request.path_params["name"] != self._model:
            raise HTTPException(404, f"there is no model of this name here, only {self._model}")
        return JSONResponse(self._described)

    @property
    def _described(self) -> dict[str, str]:
        return {"id": self._model, "object": "model", "owned_by": "local"}

    async def transcriptions(self, request: Request) -> Response:
        self._admit(request)
        form = await self._form(request)
        try:
            return await self._transcribed(request, form)
        except HTTPException:
            await form.close()
            raise

    async def _transcribed(self, request: Request, form: FormData) -> Response:
        """The line closes the upload of a job that it took."""
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise HTTPException(422, "the field file with the recording is missing, or is no upload: -F file=@talk.mp3")
        wanted = _one_of(form, "response_format", FORMATS, "json")
        is_streamed = _one_of(form, "stream", ("true", "false"), "false") == "true"
        if is_streamed and wanted in ("srt", "vtt"):
            raise HTTPException(422, f"stream=true sends segments as events, no {wanted}: leave one of the two out")
        _check_temperature(str(form.get("temperature") or "0"))
        times = {str(value) for name in _GRANULARITIES for value in form.getlist(name)} - {"segment", ""}
        if times:
            raise HTTPException(422, f"timestamp_granularities[] is {times.pop()!r}; only times of segments are known")
        events: asyncio.Queue[Event] = asyncio.Queue()
        job = self._job(form, upload, events)
        if not self._line.add(job):
            raise HTTPException(429, "too many requests are waiting: try again", {"Retry-After": "5"})
        if is_streamed:
            sides = [kind for kind in SIDE_FILES if kind in form.getlist("include[]")]
            return StreamingResponse(
                _streamed(events, job, sides),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        return _answer(await self._outcome(request, events, job), wanted, job.name, self._line.tokens)

    def _admit(self, request: Request) -> None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer"  # in any case, by RFC 9110
        token = self._limits.token
        if token and not (is_bearer and hmac.compare_digest(shown.strip().encode(), token.encode())):
            raise HTTPException(401, "this server wants a bearer token", {"WWW-Authenticate": "Bearer"})

    async def _form(self, request: Request) -> FormData:
        """The fields of a request.

        A body of no stated length is counted as it comes, and one that is too large is not read to its end.
        """
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(415, "send the recording as multipart/form-data, in a field file")
        most, seen, receive = self._limits.upload_mib * _MiB, 0, request.receive
        too_large = HTTPException(413, f"the upload is larger than {self._limits.upload_mib} MiB")
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > most:
            raise too_large

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise too_large
            return message

        try:
            async with asyncio.timeout(self._limits.upload_s):
                return await Request(request.scope, counted).form(max_files=1, max_fields=50)
        except TimeoutError as error:
            raise HTTPException(408, f"the upload took longer than {self._limits.upload_s:g} s") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the upload ended before it was complete") from error
        except HTTPException as error:
            raise HTTPException(422 if error.status_code == 400 else error.status_code, error.detail) from error

    def _job(self, form: FormData, upload: UploadFile, events: asyncio.Queue[Event]) -> Job:
        try:
            language = language_name(str(form.get("language") or self._language))
            prompt = checked_context(str(form.get("prompt") or ""))
        except UsageError as error:
            raise HTTPException(422, str(error)) from error
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        return Job(
            upload.file,
            upload.filename or "upload",
            language,
            prompt,
            lambda segment: tell(("segment", segment)),
            lambda outcome: tell(("done", outcome)),
        )

    async def _outcome(self, request: Request, events: asyncio.Queue[Event], job: Job) -> Transcript:
        """Waits, and gives up the work when the client has gone."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    event = await events.get()
                if event[0] == "done":
                    return _checked(event[1])
            if await request.is_disconnected():
                job.is_canceled.set()


def _one_of(form: FormData, name: str, known: tuple[str, ...], default: str) -> str:
    value = str(form.get(name) or default).lower()
    if value not in known:
        raise HTTPException(422, f"{name} is {value!r}; it can be {', '.join(known)}")
    return value


def _check_temperature(value: str) -> None:
    """Decoding is greedy whatever it is, but what no server of this interface takes is a mistake."""
    try:
        is_known = 0 <= float(value) <= 1
    except ValueError:
        is_known = False
    if not is_known:
        raise HTTPException(422, f"temperature is {shortened(value)!r}; it can be a number from 0 to 1")


def _checked(outcome: Transcript | Exception) -> Transcript:
    if isinstance(outcome, DataError):
        raise HTTPException(422, str(outcome)) from outcome
    if isinstance(outcome, Ending):
        raise HTTPException(503, "the server is ending: try again when it is back") from outcome
    if isinstance(outcome, Exception):
        traceback.print_exception(outcome)
        raise HTTPException(503, "the server could not do this now; its log says why") from outcome
    return outcome


def _answer(transcript: Transcript, wanted: str, name: str, tokens: Callable[[str], list[int]]) -> Response:
    if wanted == "json":
        return JSONResponse({"text": transcript.text})
    if wanted == "verbose_json":
        values = as_values(transcript, name)
        values["segments"] = [_in_full(segment, tokens(segment["text"])) for segment in values["segments"]]
        return JSONResponse({"task": "transcribe", "duration": values.pop("duration_s"), **values})
    if wanted == "text":
        return PlainTextResponse(transcript.text + "\n")
    kind = "text/vtt" if wanted == "vtt" else "application/x-subrip"
    return Response(formatted(transcript, cast(Format, wanted), name), media_type=f"{kind}; charset=utf-8")


def _in_full(segment: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """A segment with all fields of OpenAI's schema. Probabilities, which decoding does not keep, are null."""
    content = segment["text"].encode()
    return {
        **segment,
        "seek": round(100 * segment["start"]),  # in hundredths of a second, as Whisper counts
        "tokens": tokens,
        "temperature": 0.0,  # decoding is greedy
        "compression_ratio": len(content) / len(zlib.compress(content)),  # as Whisper's, of UTF-8
        "avg_logprob": None,
        "no_speech_prob": None,
    }


async def _streamed(events: asyncio.Queue[Event], job: Job, sides: list[str]) -> AsyncIterator[str]:
    """Server-sent events: a delta for each segment, then the whole text, or an error.

    Our page needs more than the interface has, which its clients pass over: each delta holds its ``segment``, and the
    last event ``files``. A comment now and then keeps the connection from looking idle while a request waits.
    """
    count = 0
    try:
        while True:
            try:
                async with asyncio.timeout(_BEAT_S):
                    event = await events.get()
            except TimeoutError:
                yield ": waiting\n\n"
                continue
            if event[0] == "segment":
                delta = event[1].text if not count else f" {event[1].text}"
                yield _event(
                    {"type": "transcript.text.delta", "delta": delta, "segment": segment_values(count, event[1])}
                )
                count += 1
                continue
            try:
                transcript = _checked(event[1])
            except HTTPException as error:
                yield _event({"error": {"message": error.detail, "code": error.status_code}})
                return
            files = {kind: formatted(transcript, cast(Format, kind), job.name) for kind in sides}
            yield _event({"type": "transcript.text.done", "text": transcript.text, "files": files})
            return
    finally:  # also where the client has gone: Starlette closes the stream then
        job.is_canceled.set()


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
