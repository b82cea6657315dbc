"""An OpenAI-compatible server that says what it is told to, with the chat page at its root."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "mmcli" / "serve" / "page" / "index.html"


@dataclass
class Script:
    """What the server answers, and what it was asked."""

    replies: list[str] = field(default_factory=list)  # the next is taken from the front; the last is repeated
    reasoning: str = ""
    models: list[str] = field(default_factory=lambda: ["0003-sft-small"])
    key: str = ""  # needed, if not empty
    status: int = 200
    message: str = ""  # of an error
    finish: str = "stop"
    context: int = 0  # most messages that fit, if not 0
    delay: float = 0.0  # seconds between pieces
    cut: bool = False  # the connection is closed in the middle of a reply
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies of chat completions
    gone: threading.Event = field(default_factory=threading.Event)  # a client left before the end


@contextmanager
def mock_server(script: Script) -> Iterator[str]:
    """Its address, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"script": script}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif not self._is_allowed():
            self._error(401, "Incorrect API key provided.")
        elif self.path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in self.script.models]
            self._send(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self._error(404, "Not found.")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return self._error(401, "Incorrect API key provided.")
        self.script.requests.append(body)
        if self.script.status != 200:
            return self._error(self.script.status, self.script.message)
        if self.script.context and len(body["messages"]) > self.script.context:
            return self._error(400, "The prompt is too long.", code="context_length_exceeded")
        replies = self.script.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(reply)
        except (BrokenPipeError, ConnectionResetError):
            self.script.gone.set()

    def _stream(self, reply: str) -> None:
        words = reply.split(" ")
        pieces = [word + " " for word in words[:-1]] + [words[-1]]
        if self.script.reasoning:
            self._event({"choices": [{"index": 0, "delta": {"reasoning_content": self.script.reasoning}}]})
        for number, piece in enumerate(pieces):
            if self.script.cut and number == len(pieces) // 2:
                return
            self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            time.sleep(self.script.delay)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": self.script.finish}]})
        self._event({"choices": [], "usage": {"completion_tokens": 42}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _is_allowed(self) -> bool:
        return not self.script.key or self.headers.get("Authorization") == f"Bearer {self.script.key}"

    def _error(self, status: int, message: str, *, code: str | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "code": code}
        self._send(status, json.dumps({"error": error}).encode())

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
