"""`mmcli serve` over thousands of requests: no 5xx, no hang, no growing memory.

Clients ask a tiny model for replies of every kind, and leave some streams half-way. Their words are few: the tokenizer
keeps the ids of the first 10,000 that a thread meets (8 MB), which is no leak. The server's resident memory is read at
the 1,000th request and at the last; a request that takes longer than 30 seconds is a hang. The last line is
`serve endurance failures=F goal=0`.

    python benchmarks/serve_endurance.py --requests 10000 --check
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
from typing import Any

from served import MODEL, PATIENCE, Served, serving

CLIENTS = 8
WARM = 1000  # requests after which memory should not grow
GROWTH = 1.05  # of resident memory from then on
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "add", "parameters": SCHEMA}
WORDS = [
    f"{a}{b}" for a in ("rain", "cloud", "hill", "river", "你好", "世界") for b in ("", "s", "y", "ing", "吗", "。")
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--check", action="store_true", help="exit 1 if anything failed")
    asked = parser.parse_args()
    with serving(asked.backend) as served:
        ask_all(served, asked.requests)
    for failure in served.failures:
        print(failure)
    print(f"serve endurance failures={len(served.failures)} goal=0")
    return 1 if asked.check and served.failures else 0


def kinds(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
    chat = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": draw.randint(1, 12)}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    function = {"type": "function", "function": TOOL}
    response = {"model": MODEL, "input": text, "max_output_tokens": 8, "stream": draw.random() < 0.5}
    return draw.choice(
        [
            ("chat/completions", chat),
            ("chat/completions", {**chat, "stream": True, "logprobs": True, "top_logprobs": 3}),
            ("chat/completions", {**chat, "n": 3, "stop": "a"}),
            ("chat/completions", {**chat, "max_tokens": 30, "response_format": form}),
            ("chat/completions", {**chat, "max_tokens": 40, "tools": [function], "tool_choice": "required"}),
            ("chat/completions", {**chat, "temperature": -1}),
            ("completions", {"model": MODEL, "prompt": [text, text + "x"], "max_tokens": 5, "stream": True}),
            ("responses", response),
            ("responses", {**response, "tools": [{"type": "function", **TOOL}]}),
        ]
    )


def ask_all(served: Served, count: int) -> None:
    """Requests of every kind from several clients."""
    before, lock, done, warm = served.answered(), threading.Lock(), 0, 0

    def client(number: int) -> None:
        nonlocal done, warm
        draw = random.Random(number)
        while True:
            with lock:
                if done >= count:
                    return
                done += 1
                if done == WARM:
                    warm = served.memory()
            path, body = kinds(draw)
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
            try:
                connection.request("POST", f"/v1/{path}", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if body.get("stream") and draw.random() < 0.3:
                    answer.readline()  # and away
                else:
                    answer.read()
            except TimeoutError:
                served.failures.append(f"{path} took longer than {PATIENCE:g} s")
            except (OSError, http.client.HTTPException) as error:
                served.failures.append(f"{path}: {error!r}")
            finally:
                connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served.report("requests", before)
    if warm:
        last = served.memory()
        print(f"memory: {warm / 1e6:.0f} MB at request {WARM:,}, {last / 1e6:.0f} MB at the last")
        if last > GROWTH * warm:
            served.failures.append(f"memory grew by {last / warm - 1:.0%}")


if __name__ == "__main__":
    sys.exit(main())
