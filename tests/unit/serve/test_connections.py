"""Clients that do not behave: slow readers, bodies that never end, connections that say nothing, half-closed ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mmcli.serve.wire import EventStream, to_json

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def request(body: dict[str, Any], *, length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {length or len(data)}\r\n\r\n".encode() + data


def connect(server: Any) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    return connection


def is_answered(server: Any) -> bool:
    status, document = server.post(CHAT, {"model": "written", "messages": HELLO, "max_tokens": 3})
    return status == 200 and document["choices"][0]["finish_reason"] in ("stop", "length")


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"0\r\n\r\n") and (piece := connection.recv(65536)):
        found += piece
    return found


def idle(server: Any, seconds: float = 8.0) -> bool:
    end = time.monotonic() + seconds
    while server.models["written"].scheduler.busy and time.monotonic() < end:
        time.sleep(0.01)
    return server.models["written"].scheduler.busy == 0


def test_a_slow_reader_holds_up_nobody_and_misses_nothing(server: Any, writes: Callable[..., Any]) -> None:
    writes("rain ", end=False)
    with connect(server) as slow:
        body = {"model": "written", "messages": HELLO, "max_tokens": 300, "stream": True}
        slow.sendall(request({**body, "logprobs": True, "top_logprobs": 20}))
        assert idle(server)  # its slot is free although nothing was read
        assert is_answered(server)
        found = read_all(slow)
    assert found.count(b'"content":"') >= 300 and b"[DONE]" in found


def test_a_body_that_never_ends_is_given_up(
    server: Any, writes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes("rain")
    monkeypatch.setattr("mmcli.serve.wire.BODY_SECONDS", 0.3)
    with connect(server) as half:
        half.sendall(request({"model": "written"}, length=1000))
        assert is_answered(server)
        assert half.recv(100).startswith(b"HTTP/1.1 408")


def test_connections_that_say_nothing_keep_nobody_out(server: Any, writes: Callable[..., Any]) -> None:
    writes("rain")
    silent = [connect(server) for _ in range(50)]
    for number, connection in enumerate(silent):
        connection.sendall([b"", b"POST", b"GET /health HTTP/1.1\r\nHost: "][number % 3])
    assert is_answered(server) and server.ask("GET", "/health")[0] == 200
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("begun", [b"", b"POST", b"GET /health HTTP/1.1\r\nHost: "])
@pytest.mark.parametrize("kept_alive", [True, False])
def test_a_head_that_does_not_come_ends_the_connection(
    server: Any, monkeypatch: pytest.MonkeyPatch, begun: bytes, kept_alive: bool
) -> None:
    monkeypatch.setattr("mmcli.serve.server.HEAD_SECONDS", 0.3)
    with connect(server) as silent:
        if kept_alive:
            silent.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += silent.recv(1000)
        silent.sendall(begun)
        if begun or not kept_alive:
            assert silent.recv(100) == b""
        else:  # the pause after an answer may be longer
            silent.settimeout(0.6)
            with pytest.raises(TimeoutError):
                silent.recv(100)


def test_what_comes_after_the_head_may_take_longer(
    server: Any, writes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcli.serve.server.HEAD_SECONDS", 0.4)
    writes("rain")
    data = request({"model": "written", "messages": HELLO, "max_tokens": 3})
    with connect(server) as slow:
        slow.sendall(data[:-3])
        time.sleep(0.7)
        slow.sendall(data[-3:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("rest", ["no chunk\r\n\r\n", "1" * 70_000], ids=["no chunk", "endless"])
def test_bytes_that_are_no_http_end_the_connection_and_are_no_failure(
    server: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, method: str, rest: str
) -> None:
    for _ in range(5):
        with connect(server) as broken:
            head = f"{method} {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            with contextlib.suppress(ConnectionError):
                broken.sendall(f"{head}Content-Type: application/json\r\n\r\n{rest}".encode())
                while broken.recv(1000):
                    pass
    assert server.ask("GET", "/health")[0] == 200
    assert caplog.text == capfd.readouterr().err == ""


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_is_half_closed_gives_its_slot_back(
    server: Any, writes: Callable[..., Any], stream: bool
) -> None:
    writes("rain ", seconds=0.01, end=False)
    with connect(server) as half:
        half.sendall(request({"model": "written", "messages": HELLO, "max_tokens": 20, "stream": stream}))
        half.shutdown(socket.SHUT_WR)
        assert idle(server)
        half.settimeout(3)
        while half.recv(65536):
            pass
    assert is_answered(server)


def test_a_reset_connection_gives_its_slot_back(server: Any, writes: Callable[..., Any]) -> None:
    writes("rain ", seconds=0.02, end=False)
    connection = connect(server)
    connection.sendall(request({"model": "written", "messages": HELLO, "stream": True}))
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()  # RST rather than FIN
    assert idle(server, 1.5)


def test_a_document_is_one_line_for_whoever_splits_it() -> None:
    document = {"a\u2028": "\x85 \u2029 \n \x0b \x1c 雨 \ud800"}
    text = to_json(document).decode()
    assert text.splitlines() == [text] and "雨" in text
    assert json.loads(text) == document


def test_between_events_that_wait_already_others_get_their_turn() -> None:
    sent: list[Any] = []
    seen: set[int] = set()

    async def documents() -> AsyncIterator[dict[str, int]]:
        for number in range(5):
            yield {"number": number}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def watch() -> None:
        while len(sent) < 6:
            seen.add(len(sent))
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(EventStream(documents(), lambda: None)({}, receive, send), watch())

    asyncio.run(both())
    assert len(seen) >= 4
