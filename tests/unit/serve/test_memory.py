"""What a request took is given back with its answer, not when the garbage collector comes by."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from mmcli.serve.scheduler import Job

CHAT = "/v1/chat/completions"
HELLO = {"model": "random", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "seed": 1}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}


@pytest.mark.parametrize("change", [{}, {"stream": True}, {"n": 2}, FORM], ids=["plain", "stream", "n", "schema"])
def test_replies_are_freed_once_they_are_answered(server: Any, change: dict[str, Any]) -> None:
    server.post(CHAT, HELLO)
    gc.collect()
    gc.disable()
    try:
        for _ in range(8):
            assert server.post(CHAT, {**HELLO, **change})[0] == 200
        left = sum(type(each) is Job for each in gc.get_objects())
    finally:
        gc.enable()
    assert left <= 2 * change.get("n", 1)  # of the last request or two, which are just ending
