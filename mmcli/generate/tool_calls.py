"""Tool calls in the text of a reply, in the form of Hermes and Qwen: `<tool_call>{"name", "arguments"}</tool_call>`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call that a reply makes; `error` says why it cannot be run, for the model to read."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


def read_calls(content: str) -> list[ToolCall]:
    """The calls in a reply's text, in their order; one without its end is none."""
    return [_read_call(found[1]) for found in CALL.finditer(content)]


def with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant message with the calls of its content as `tool_calls`, as chat templates take them.

    Where a call is broken the message stays as it is, so that the model sees what it wrote.
    """
    calls = read_calls(message["content"])
    if not calls or any(call.error for call in calls):
        return message
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    text = CALL.sub("", message["content"]).strip()
    return {**message, "content": text, "tool_calls": [{"type": "function", "function": each} for each in functions]}


def calls_of(message: dict[str, Any]) -> list[ToolCall]:
    """The calls of an assistant message, broken ones included."""
    if "tool_calls" in message:
        functions = (call["function"] for call in message["tool_calls"])
        return [ToolCall(each["name"], each["arguments"]) for each in functions]
    return read_calls(message["content"])


def _read_call(text: str) -> ToolCall:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ToolCall("", {}, f"the call is not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall("", {}, 'the call has no "name"')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(call["name"], {}, f'the arguments of "{call["name"]}" are not an object')
    return ToolCall(call["name"], arguments)
