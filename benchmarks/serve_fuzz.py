"""`mmcli serve` against requests that nobody would write: no answer of 5xx, no hang, no slot that stays taken.

Eight clients send bodies of every kind to a tiny model, most as they should be, some with odd values
(`odd_requests.py`); some of the clients read slowly, go away, or break the bytes that they send. Half of the requests
at least have to be accepted, else nothing deep was reached. An error inside a stream counts as the 5xx that it stands
for; replies that were asked for in JSON have to be JSON. Then schemathesis sends what it makes of the server's OpenAPI
document, where it is installed (`pip install "mmcli[fuzz]"`). The last line is `serve fuzz failures=F goal=0`.

    python benchmarks/serve_fuzz.py --requests 10000 --schemathesis 10000 --check
    python benchmarks/serve_fuzz.py --first 4711 --requests 1          # one of them again
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from odd_requests import OddRequest, odd_request
from served import MODEL, PATIENCE, Served, serving

CLIENTS = 8
ACCEPTED = 0.5  # share of the requests, at least
SILENT = 30  # connections that are open all the while and do not say what they want
END_SECONDS = 5.0  # in which all slots are free once nobody asks
HEADS = (
    "Host: localhost:1\r\nContent-Type: application/json; charset=utf-16",
    "Host: localhost\r\nContent-Type: text/plain",
    "Host: [::1\r\nContent-Type: application/json",
    "Host: localhost\r\nHost: localhost\r\nContent-Type: application/json",
    "Host: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer \xff\xfe",
    "Host: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue",
    "Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked",
    "Host: localhost\r\nContent-Type: application/json\r\nX: " + "a" * 70_000,
    "Host: localhost\r\nContent-Type: application/json\r\nUpgrade: websocket\r\nConnection: Upgrade",
)
PATHS = ("/v1/models/%ff%00", "/v1//models", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/" + "a" * 5000, "/?a=[", "*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of odd_requests.py")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", type=int, default=0, help="made from the OpenAPI document, after them")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds after which a request hangs")
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--check", action="store_true", help="exit 1 if anything failed")
    asked = parser.parse_args()
    sys.setrecursionlimit(10_000)  # to write bodies that are nested too deeply
    with serving(asked.backend) as served:
        if asked.requests:
            send_all(served, asked.seed, range(asked.first, asked.first + asked.requests), asked.patience)
        if asked.schemathesis and importlib.util.find_spec("schemathesis") is None:
            print("schemathesis is not installed")
        elif asked.schemathesis:
            schemathesis(served, asked.schemathesis, asked.seed, asked.patience)
    for failure in served.failures:
        print(failure)
    print(f"serve fuzz failures={len(served.failures)} goal=0")
    return 1 if asked.check and served.failures else 0


def send_all(served: Served, seed: int, numbers: range, patience: float) -> None:
    """Odd requests from several clients at once, beside connections that say nothing."""
    before, left, start = served.answered(), iter(numbers), time.perf_counter()
    statuses: Counter[str] = Counter()  # of requests that came whole, and whose answers were read whole
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            request = odd_request(seed, number)
            began = time.perf_counter()
            try:
                status, problem = send(served.port, request, patience)
            except TimeoutError:
                status, problem = "none", "no answer"
            except (OSError, http.client.HTTPException) as error:
                status, problem = "none", repr(error) if request.manner in ("whole", "slow", "drips") else ""
            except Exception as error:
                status, problem = "none", f"its answer is none: {error!r}"
            seconds = time.perf_counter() - began
            if seconds > patience:
                problem = f"{problem} after {seconds:.0f} s"
            with lock:
                if request.manner in ("whole", "slow", "drips"):
                    statuses[status] += 1
                if problem:
                    told = f"request {number} of seed {seed} ({request.manner}), {request.path}: {problem}"
                    served.failures.append(f"{told}\n  {request.data.decode()[:1000]}")
                    print(told, flush=True)
                if number % 1000 == 999:
                    print(f"{number + 1:,} requests, {time.perf_counter() - start:.0f} s", flush=True)

    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(SILENT)]
    for number, connection in enumerate(silent):
        connection.sendall([b"", b"POST", b"GET /health HTTP/1.1\r\nHost: "][number % 3])
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in silent:
        connection.close()
    served.report("odd requests", before)
    whole = statuses.total()
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(f"odd requests: of {whole:,} sent and read whole: {told}")
    if statuses["200"] < ACCEPTED * whole:
        served.failures.append(f"only {statuses['200']} of {whole} requests were accepted")
    expect_free(served)


def expect_free(served: Served) -> None:
    """Every slot is free again, and nothing waits."""
    end = time.monotonic() + END_SECONDS
    while (taken := served.metric("mmcli_slots_busy") + served.metric("mmcli_queue_length")) and time.monotonic() < end:
        time.sleep(0.1)
    print(f"memory {served.memory() / 1e6:.0f} MB, {served.metric('mmcli_completion_tokens_total'):,} tokens written")
    if taken:
        served.failures.append(f"{taken} replies hold slots or wait {END_SECONDS:g} s after the last request")


def send(port: int, request: OddRequest, patience: float) -> tuple[str, str]:
    """(status, what is wrong with the answer) of a request, as its client sends it."""
    draw, data, manner = request.draw, request.data, request.manner
    with socket.socket() as connection:
        if manner == "slow":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(patience)
        connection.connect(("127.0.0.1", port))
        path, lines = request.path, "Host: localhost\r\nContent-Type: application/json"
        if manner == "garbles":
            data = garbled(request)
        if manner == "odd head":
            path, lines = draw.choice([path, *PATHS]), draw.choice(HEADS)
        length = "" if "chunked" in lines else f"Content-Length: {len(data)}\r\n"
        method = draw.choice(["GET", "PUT", "HEAD", "POST", "OPTIONS"]) if manner == "odd head" else "POST"
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nConnection: close\r\n{length}{lines}\r\n\r\n".encode("latin-1")
        )
        if manner == "drips":
            for at in range(0, len(data), max(1, len(data) // 3)):
                connection.sendall(data[at : at + max(1, len(data) // 3)])
                time.sleep(0.005)
        else:
            connection.sendall(data)
        if manner in ("leaves", "resets"):
            if manner == "leaves":
                connection.recv(1)
            else:
                time.sleep(draw.choice([0, 0.005, 0.05]))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            return "none", ""
        if manner in ("half-closes", "odd head"):
            connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        pieces = []
        while piece := answer.read(2048):
            pieces.append(piece)
            if manner == "slow":
                time.sleep(0.001)
        return str(answer.status), problem_of(request, answer, b"".join(pieces))


def garbled(request: OddRequest) -> bytes:
    """The body with some of its bytes broken."""
    draw, data = request.draw, bytearray(request.data)
    how = draw.choice(["cut", "flip", "double", "utf-16", "nothing"])
    if how == "cut":
        return bytes(data[: draw.randrange(len(data))])
    if how == "flip":
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    if how == "double":
        return bytes(data[:-1]) + b',"temperature":[],"temperature":0,' + bytes(data[1:])
    if how == "utf-16":
        return data.decode().encode("utf-16")
    return b"" if how == "nothing" else bytes(data)


def problem_of(request: OddRequest, answer: http.client.HTTPResponse, content: bytes) -> str:
    """What an answer has that it should not; empty if it is as it should be."""
    status = answer.status
    if status >= 500:
        return f"{status}: {content.decode()[:500]}"
    if request.manner in ("half-closes", "odd head", "garbles"):  # h11 itself answers some of them
        return ""
    if answer.headers.get_content_type() == "text/event-stream":
        return problem_of_stream(request, content.decode())
    document = json.loads(content)
    if status != 200:
        error = document["error"]
        is_plain = isinstance(error["message"], str) and error["message"] and error["type"] != "server_error"
        return "" if is_plain else f"{status}: {document}"
    replies = [
        (each["message"]["content"], each["finish_reason"]) for each in document.get("choices", []) if "message" in each
    ]
    return problem_of_replies(request, replies)


def problem_of_stream(request: OddRequest, text: str) -> str:
    """The same of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if request.path == "/v1/responses":
        last = json.loads(lines[-1])
        failed = last["response"]["error"]
        return f"it ends with {last}" if failed and failed["code"] != "invalid_prompt" else ""
    if lines[-1] != "[DONE]":
        last = json.loads(lines[-1])
        is_asked_for = last.get("error", {}).get("type") == "invalid_request_error"
        return "" if is_asked_for else f"it ends with {last}"
    contents: Counter[int] = Counter()
    replies: dict[int, list[str]] = {}
    for line in lines[:-1]:
        for choice in json.loads(line)["choices"]:
            contents[choice["index"]] += 1
            replies.setdefault(choice["index"], ["", ""])
            replies[choice["index"]][0] += choice.get("delta", {}).get("content") or ""
            replies[choice["index"]][1] = choice["finish_reason"] or ""
    return problem_of_replies(request, [(text, reason) for text, reason in replies.values()])


def problem_of_replies(request: OddRequest, replies: list[tuple[str, str]]) -> str:
    """What was asked for in JSON and is over has to be JSON."""
    form = request.body.get("response_format")
    is_json = isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")
    if not is_json or request.body.get("stop"):
        return ""
    for content, reason in replies:
        if reason == "stop":
            try:
                json.loads(content)
            except ValueError:
                return f"no JSON: {content!r}"
    return ""


def schemathesis(served: Served, count: int, seed: int, patience: float) -> None:
    """Requests that schemathesis makes, of which some get as far as the model."""
    before, start = served.answered(), time.perf_counter()
    document = json.loads(served.get("/openapi.json"))
    message: dict[str, Any] = {"type": "object", "required": ["role", "content"], "additionalProperties": False}
    roles = {"enum": ["system", "user", "assistant", "tool"]}
    message["properties"] = {"role": roles, "content": {"type": "string", "maxLength": 50}}
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            schema["properties"]["model"] = {"enum": [MODEL]}
    messages = document["components"]["schemas"]["ChatRequest"]["properties"]["messages"]
    messages |= {"maxItems": 5, "items": {"anyOf": [message, message, {"type": "object"}]}}
    bodies = sum("requestBody" in operation for each in document["paths"].values() for operation in each.values())
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "openapi.json"
        path.write_text(json.dumps(document))
        command = [sys.executable, "-m", "schemathesis.cli", "run", str(path)]
        command += ["--url", f"http://127.0.0.1:{served.port}", "--seed", str(seed)]
        command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--mode", "all"]
        command += ["--max-examples", str(-(-count // bodies)), "--request-timeout", str(patience), "--no-color"]
        command += ["--continue-on-failure", "--generation-database", "none", "--no-shrink"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place)
    if done.returncode:
        served.failures.append(f"schemathesis ended with {done.returncode}:\n{done.stdout[-3000:]}")
    served.report("schemathesis", before)
    print(f"schemathesis: {time.perf_counter() - start:.0f} s")
    expect_free(served)


if __name__ == "__main__":
    sys.exit(main())
