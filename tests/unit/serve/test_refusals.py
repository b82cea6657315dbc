"""Bad requests, keys, busy servers, clients that go away: errors in OpenAI's form, and slots that come back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from mmcli.serve.models import serve_engine
from mmcli.text.tokenizer import Tokenizer

from .conftest import Written, running

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "add"}}]
SCHEMA_PLACE = "response_format.json_schema.schema"
ENDLESS_SCHEMA = {"name": "a", "schema": {"$ref": "#"}}
BROKEN_SCHEMA = {"name": "a", "schema": {"type": "king"}}
LONGER_AND_LONGER = {
    "type": "object",
    "properties": {"": {"$ref": "#"}},
    "required": [""],
    "additionalProperties": False,
}
BODY: dict[str, Any] = {"model": "random", "messages": HELLO, "max_tokens": 3}


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"a": [value]} if depth % 2 else [value]
    return value


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "rain " * 4000}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"reasoning_effort": "none"}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}}, SCHEMA_PLACE),
        ({"response_format": {"type": "json_schema", "json_schema": BROKEN_SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": ENDLESS_SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": LONGER_AND_LONGER}}}, None),
        ({"metadata": nested(200)}, None),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"a": nested(900)}}}]}, None),
        ({"repetition_penalty": 1e-320}, "repetition_penalty"),
        ({"store": True}, "store"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"model": None}, "model"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(server: Any, change: dict[str, Any], param: str | None) -> None:
    status, document = server.post(CHAT, {**BODY, **change})
    error = document["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param), document
    assert error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"a"', b"\xff", b'{"temperature": NaN}', b"[" * 100_000, b'{"n": -Infinity}', b"1" * 5000],
    ids=lambda body: body[:12],
)
def test_what_is_no_json_object_is_refused(server: Any, body: bytes) -> None:
    status, document = server.post(CHAT, body)
    assert status == 400 and document["error"]["type"] == "invalid_request_error"


def test_a_body_too_large_is_refused(server: Any) -> None:
    assert server.post(CHAT, b" " * (4 * 2**20 + 1))[0] == 413


def test_a_form_of_a_web_page_is_refused(server: Any) -> None:
    assert server.ask("POST", CHAT, json.dumps(BODY).encode(), {"Content-Type": "text/plain"})[0] == 415


def test_a_context_that_is_too_short_has_its_code(server: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.chat.completions.create(model="random", messages=[{"role": "user", "content": "rain " * 4000}])
    assert caught.value.code == "context_length_exceeded"


def test_unknown_models_paths_and_methods(server: Any) -> None:
    with pytest.raises(openai.NotFoundError, match='no model "gpt-9"; served: random, base, written') as caught:
        server.client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-9")
    assert server.ask("GET", "/nowhere")[1]["error"]["type"] == "not_found_error"
    assert server.ask("GET", CHAT)[0] == 405


def test_half_a_surrogate_pair_is_answered(server: Any) -> None:
    message = {"role": "user", "content": "\ud800", "\ud800": "\ud800"}
    assert server.post(CHAT, {**BODY, "messages": [message]})[0] == 200
    assert server.post(CHAT, {**BODY, "\ud800": 1})[0] == server.post(CHAT, {**BODY, "user": "\ud800"})[0] == 400


def test_types_that_are_none_are_passed_on(server: Any) -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": {"type": ["object", {}, 5]}}}
    assert server.post(CHAT, {**BODY, "tools": [tool]})[0] == 200


def test_models_health_metrics(server: Any) -> None:
    assert [model.id for model in server.client.models.list()] == ["random", "base", "written"]
    assert server.client.models.retrieve("base").owned_by == "mmcli"
    assert server.ask("GET", "/health") == (200, {"status": "ok"})
    server.post(CHAT, BODY)
    status, text = server.ask("GET", "/metrics")
    assert status == 200 and 'mmcli_slots{model="random"} 4' in text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(values['mmcli_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert int(values['mmcli_completion_tokens_total{model="random"}']) >= 3
    assert int(values['mmcli_first_token_seconds_count{model="random"}']) >= 1
    assert server.ask("GET", "/openapi.json")[1]["components"]["schemas"]["ChatRequest"]["properties"]["top_k"]


def test_another_host_name_is_refused(server: Any) -> None:
    status, document = server.ask("GET", "/v1/models", headers={"Host": "evil.example:80"})
    assert (status, document["error"]["code"]) == (403, "wrong_host")
    assert server.ask("GET", "/v1/models", headers={"Host": "localhost:80"})[0] == 200
    assert server.ask("GET", "/v1/models", headers={"Host": "[::1]:80"})[0] == 200


def test_a_key_and_origins(tokenizer: Tokenizer, tmp_path: Any) -> None:
    page = tmp_path / "index.html"
    page.write_text("<title>page</title>")
    models = {"m": serve_engine("m", Written(tokenizer), tokenizer, chat=True, queue=1)}
    with running(models, api_key="secret", cors=["https://a.example"], page=page) as found:
        assert found.ask("GET", "/v1/models")[1]["error"]["code"] == "invalid_api_key"
        assert found.ask("GET", "/metrics", headers={"Authorization": "Bearer Secret"})[0] == 401
        key = {"Authorization": "Bearer secret", "Host": "any.example"}
        assert found.ask("GET", "/v1/models", headers=key)[0] == 200
        assert found.ask("GET", "/health")[0] == 200
        assert found.ask("GET", "/v1/models", headers={"Host": "[::1"})[0] == 401
        assert found.ask("GET", "/nowhere", headers={**key, "Host": "[::1"})[0] == 404
        assert found.ask("GET", "/") == (200, "<title>page</title>")
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert found.ask("OPTIONS", CHAT, headers={"Origin": "https://a.example", **asked})[0] == 200
        assert found.ask("OPTIONS", CHAT, headers={"Origin": "https://b.example", **asked})[0] == 400


def wait_until(check: Callable[[], bool], seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    return check()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server: Any, writes: Callable[..., Any], stream: bool) -> None:
    scheduler = server.models["written"].scheduler
    writes("rain ", seconds=0.02, end=False)
    data = json.dumps({"model": "written", "messages": HELLO, "stream": stream}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + data)
        assert wait_until(lambda: scheduler.busy == 1)
    assert wait_until(lambda: scheduler.busy == 0)


def test_a_full_queue_is_429_and_those_in_it_are_answered(server: Any, writes: Callable[..., Any]) -> None:
    scheduler = server.models["written"].scheduler
    writes("rain ", seconds=0.01, end=False)
    create = server.client.chat.completions.create
    streams = [create(model="written", messages=HELLO, stream=True, max_tokens=20) for _ in range(3)]
    assert wait_until(lambda: (scheduler.busy, scheduler.waiting) == (2, 1))
    with pytest.raises(openai.RateLimitError) as caught:
        create(model="written", messages=HELLO)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert [sum(1 for chunk in stream if chunk.choices[0].delta.content) for stream in streams] == [20, 20, 20]


def test_an_error_in_a_stream_is_its_last_event(server: Any, writes: Callable[..., Any], tokenizer: Tokenizer) -> None:
    engine = writes("The rain falls", end=False)
    engine.broken = tokenizer.encode_text("Hello")[-1]
    stream = server.client.chat.completions.create(model="written", messages=HELLO, stream=True)
    pieces = []
    with pytest.raises(openai.APIError, match="the model's logits at position"):
        pieces += [chunk.choices[0].delta.content for chunk in stream]
    status, document = server.post(CHAT, {"model": "written", "messages": HELLO})
    assert (status, document["error"]["type"]) == (500, "server_error")
    assert server.models["written"].scheduler.busy == 0


def test_a_reply_beside_a_broken_one_goes_on(server: Any, writes: Callable[..., Any], tokenizer: Tokenizer) -> None:
    engine = writes("The rain falls on the hills.", seconds=0.005)
    engine.broken = tokenizer.encode_text("zz")[-1]
    create = server.client.chat.completions.create
    asked = [HELLO, [{"role": "user", "content": "zz"}]]
    streams = [create(model="written", messages=messages, stream=True) for messages in asked]
    with pytest.raises(openai.APIError, match="not finite"):
        list(streams[1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streams[0]) == "The rain falls on the hills."


def test_a_server_that_stops_ends_its_streams(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcli.serve.server.DRAIN_SECONDS", 0.3)
    engine = Written(tokenizer)
    engine.reply, engine.seconds = tokenizer.encode_text("rain "), 0.01
    with running({"m": serve_engine("m", engine, tokenizer, chat=True, queue=1)}) as found:
        create = found.client.chat.completions.create
        quick = create(model="m", messages=HELLO, max_tokens=3, stream=True)
        endless = create(model="m", messages=HELLO, stream=True)
        next(endless)
    assert sum(1 for chunk in quick if chunk.choices[0].delta.content) == 3
    with pytest.raises(openai.APIError, match="the server is stopping"):
        list(endless)
