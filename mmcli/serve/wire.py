"""Bodies in, JSON and server-sent events out, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmcli.serve.errors import ApiError, invalid
from mmcli.serve.requests import MAX_BODY, MAX_DEPTH, Body

B = TypeVar("B", bound=Body)
T = TypeVar("T")
BODY_SECONDS = 30.0  # for a client to send its body
LINE_ENDS = "\x85\u2028\u2029"
QUIET_SECONDS = 15.0  # of a stream, before a comment is sent so that no proxy gives it up


async def read_body(request: Request, kind: type[B]) -> B:
    """The body of a request, checked.

    Raises:
        ApiError: it is not JSON, too large, too slow, or not of this kind.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":  # what a page of another origin may send without being asked is refused
        raise ApiError(415, f'the content type is "{media_type[:100]}"; send application/json')
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise ApiError(413, f"the body has more than {MAX_BODY:,} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body took more than {BODY_SECONDS:g} seconds") from None
    try:
        value = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {_reason(error)}") from None
    if _is_deeper(value, MAX_DEPTH):
        raise invalid(f"the body is nested too deeply: more than {MAX_DEPTH} lists and objects inside one another")
    try:
        return kind.model_validate(value)
    except (ValidationError, RecursionError, OverflowError) as error:
        raise _of_validation(error, value) from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """True for JSON with more than so many lists and objects inside one another."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(depth):
        inner = (each for one in level for each in (one.values() if isinstance(one, dict) else one))
        level = [each for each in inner if isinstance(each, list | dict)]
    return bool(level)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _of_validation(error: Exception, value: Any) -> ApiError:
    """The first thing that is wrong, by the name of its parameter."""
    if not isinstance(error, ValidationError):
        return invalid(f"the body cannot be used: {_reason(error)}")
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(problems, key=_telling)
    param = _param(first["loc"], value)
    words = {"extra_forbidden": "there is no such parameter", "missing": "it is missing"}
    what = words.get(first["type"], first["msg"].removeprefix("Value error, "))
    return invalid(f"{param}: {what}" if param else what, param or None)


def _telling(problem: Any) -> tuple[bool, int, bool, bool]:
    """How much a problem says of what is wrong, where pydantic tried several alternatives."""
    kind = problem["type"]
    return kind != "extra_forbidden", len(problem["loc"]), kind == "literal_error", not kind.endswith("_type")


def _param(place: Sequence[int | str], value: Any) -> str:
    """`tools[0].function.name`; the names of alternatives that pydantic puts between are left out."""
    param = ""
    for number, part in enumerate(place, start=1):
        if isinstance(part, int) and isinstance(value, list):
            param, value = f"{param}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or number == len(place)):
            param, value = f"{param}.{part}".lstrip("."), value.get(part)
    return param[:200]


def to_json(document: Mapping[str, Any]) -> bytes:
    """A JSON document in UTF-8, on one line.

    Escaped are half surrogate pairs, which a request may hold, and what ends a line for Unicode and so for clients that
    split decoded text, though neither for JSON nor for server-sent events.
    """
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for end in LINE_ENDS:
        if end in text:
            text = text.replace(end, f"\\u{ord(end):04x}")
    return text.encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def error_response(error: ApiError) -> Response:
    """The answer for an error."""
    return JsonResponse(error.body, error.status, headers=error.headers)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """What `work` gives; None, and `work` cancelled, if the client goes away first."""
    worker = asyncio.ensure_future(work)
    listener = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({worker, listener}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        await _end(listener, worker)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, one a document. Those that have a `type` are named by it; else `[DONE]` ends them.

    An error becomes the last event. When the client goes away, it is noticed however quiet the stream is.
    """

    def __init__(self, documents: AsyncIterator[Mapping[str, Any]], on_close: Callable[[], None]) -> None:
        """A stream that calls `on_close` at its end, whatever ends it."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, headers, "text/event-stream")
        del self.headers["content-length"]
        self._events = _events(documents)
        self._on_close = on_close
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        worker = asyncio.create_task(self._send_all(send))
        listener = asyncio.create_task(_disconnected(receive))
        ticker = asyncio.create_task(self._keep_alive(send))
        try:
            await asyncio.wait({worker, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(worker, listener, ticker)
            self._on_close()

    async def _send_all(self, send: Send) -> None:
        with contextlib.suppress(OSError):  # what some servers raise once the client is gone
            async for event in self._events:
                self._sent += 1
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0)  # of a reply that waits whole, too, others get their turn between two events
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            before = self._sent
            await asyncio.sleep(QUIET_SECONDS)
            if self._sent == before:
                await send({"type": "http.response.body", "body": b": still writing\n\n", "more_body": True})


async def _events(documents: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    try:
        named = False
        async for document in documents:
            named = "type" in document
            name = f"event: {document['type']}\n".encode() if named else b""
            yield name + b"data: " + to_json(document) + b"\n\n"
        if not named:
            yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield b"data: " + to_json(error.body) + b"\n\n"
