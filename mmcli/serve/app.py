"""The HTTP interface: paths, keys, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmcli import __version__
from mmcli.serve import chat, completions, responses
from mmcli.serve.errors import ApiError
from mmcli.serve.hosts import is_loopback
from mmcli.serve.metrics import CONTENT_TYPE, Requests, exposition
from mmcli.serve.models import ServedModel
from mmcli.serve.requests import Body, ChatRequest, CompletionRequest
from mmcli.serve.responses_body import ResponsesRequest
from mmcli.serve.wire import EventStream, JsonResponse, error_response, read_body, unless_disconnected

PAGE = Path(__file__).parent / "page" / "index.html"
PATHS = frozenset(
    ("/", "/health", "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models")
)
OPEN_PATHS = frozenset(("/", "/health"))  # without a key
GONE = 499  # nginx's number for a client that went away; nobody reads it


def create_app(
    models: Mapping[str, ServedModel],
    *,
    api_key: str | None = None,
    cors: Sequence[str] = (),
    page: Path = PAGE,
) -> FastAPI:
    """The interface to models.

    Args:
        models: by every name that a request may give them.
        api_key: that a request must bring. Without one, only requests to a name of this machine are answered, so that
            no web site can reach the server through a name of its own that it points here (DNS rebinding).
        cors: origins whose pages may use it; "*" for all.
        page: the chat page at `/`, if it is there.
    """
    requests = Requests()
    app = FastAPI(title="mmcli serve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    listed = list({each.name: each for each in models.values()}.values())

    def find(name: str) -> ServedModel:
        if name not in models:
            known = ", ".join(each.name for each in listed)
            raise ApiError(404, f'there is no model "{name}"; served: {known}', param="model", code="model_not_found")
        return models[name]

    @app.post("/v1/chat/completions", openapi_extra=_request_body("ChatRequest"))
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        model = find(body.model)
        replies = chat.start(model, body, await asyncio.to_thread(chat.encode, model, body))
        if body.stream:
            return EventStream(chat.stream(model, body, replies), replies.cancel)
        return _answer(await unless_disconnected(request, chat.answer(model, body, replies)))

    @app.post("/v1/completions", openapi_extra=_request_body("CompletionRequest"))
    async def text_completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest)
        model = find(body.model)
        ids = await asyncio.to_thread(completions.encode, model, body)
        replies = completions.start(model, body, ids)
        if body.stream:
            return EventStream(completions.stream(model, body, replies, len(ids)), replies.cancel)
        return _answer(await unless_disconnected(request, completions.answer(model, body, replies, len(ids))))

    @app.post("/v1/responses", openapi_extra=_request_body("ResponsesRequest"))
    async def create_response(request: Request) -> Response:
        body = await read_body(request, ResponsesRequest)
        model = find(body.model)
        asked, prompt = await asyncio.to_thread(responses.encode, model, body)
        replies = chat.start(model, asked, prompt)
        if body.stream:
            return EventStream(responses.stream(model, body, replies), replies.cancel)
        return _answer(await unless_disconnected(request, responses.answer(model, body, replies)))

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JsonResponse({"object": "list", "data": [_model(each) for each in listed]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return JsonResponse(_model(find(name)))

    @app.get("/health")
    async def health() -> Response:
        return JsonResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        gauges = {
            each.name: {
                "slots": each.engine.slots,
                "busy": each.scheduler.busy,
                "waiting": each.scheduler.waiting,
            }
            for each in listed
        }
        text = exposition(requests, {each.name: each.metrics for each in listed}, gauges)
        return Response(text, media_type=CONTENT_TYPE)

    if page.is_file():

        @app.get("/", include_in_schema=False)
        async def chat_page() -> Response:
            return FileResponse(page, headers={"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        return error_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, f"{type(error).__name__}: {error}"))

    app.add_middleware(Gate, api_key=api_key, requests=requests, paths=PATHS)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"])
    app.openapi().setdefault("components", {})["schemas"] = _schemas(ChatRequest, CompletionRequest, ResponsesRequest)
    return app


class Gate:
    """Counts every answer; refuses requests without the key, or to a name that is not this machine's."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, requests: Requests, paths: frozenset[str]) -> None:
        self.app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._requests = requests
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.count(path, message["status"])
            await send(message)

        refusal = self._refusal(Request(scope))
        await (self.app if refusal is None else error_response(refusal))(scope, receive, counted)

    def _refusal(self, request: Request) -> ApiError | None:
        if self._api_key is None:
            host = request.headers.get("host", "").rpartition("]")
            name = (host[0] + host[1]) or host[2].partition(":")[0]
            if not is_loopback(name):
                message = f'the request is for "{name[:100]}", not for this machine; use 127.0.0.1, or --api-key'
                return ApiError(403, message, code="wrong_host")
            return None
        if request.scope["path"] in OPEN_PATHS:  # not `request.url`, which breaks at an odd Host
            return None
        given = request.headers.get("authorization", "").partition(" ")
        if given[0].lower() == "bearer" and hmac.compare_digest(given[2].strip().encode("latin-1"), self._api_key):
            return None
        message = "the API key is wrong" if given[0] else "no API key was given; send Authorization: Bearer KEY"
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _answer(document: dict[str, Any] | None) -> Response:
    return Response(status_code=GONE) if document is None else JsonResponse(document)


def _model(model: ServedModel) -> dict[str, Any]:
    """A model as `/v1/models` shows it; `max_model_len`, as vLLM has it, is its context."""
    head = {"id": model.name, "object": "model", "created": model.created, "owned_by": "mmcli"}
    return {**head, "max_model_len": model.engine.max_len, "chat": model.chat}


def _request_body(name: str) -> dict[str, Any]:
    """The body of a path in /openapi.json."""
    reference = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def _schemas(*kinds: type[Body]) -> dict[str, Any]:
    """The JSON Schemas of bodies and of what they hold."""
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    return dict(found["$defs"])
