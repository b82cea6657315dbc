"""Tool calls in the text of a reply, in the form of Hermes and Qwen: `<tool_call>{"name", "arguments"}</tool_call>`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mmcli.text.prompt import CALL_MARK, END_CALL_MARK

WHOLE_CALL = re.compile(rf"{CALL_MARK}\s*(.*?)\s*{END_CALL_MARK}", re.DOTALL)
MARKS = re.compile(f"({CALL_MARK}|{END_CALL_MARK})")


@dataclass(frozen=True)
class ToolCall:
    """One call that a reply makes; `error` says why it cannot be run, for the model to read."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


class CallMarks:
    """A text that comes in pieces, cut so that every mark of a call is a piece of its own."""

    def __init__(self) -> None:
        self._held = ""  # may be the beginning of a mark

    def push(self, text: str) -> list[str]:
        """The pieces that are certain; none is empty."""
        *pieces, rest = MARKS.split(self._held + text)
        longest = min(len(rest), len(END_CALL_MARK) - 1)
        held = next((n for n in range(longest, 0, -1) if _may_begin(rest[-n:])), 0)
        shown, self._held = rest[: len(rest) - held], rest[len(rest) - held :]
        return [piece for piece in (*pieces, shown) if piece]

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held


def _may_begin(text: str) -> bool:
    return CALL_MARK.startswith(text) or END_CALL_MARK.startswith(text)


def read_calls(content: str) -> list[ToolCall]:
    """The calls in a reply's text, in their order; one without its end is none."""
    return [_read_call(found[1]) for found in WHOLE_CALL.finditer(content)]


def with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant message with the calls of its content as `tool_calls`, as chat templates take them.

    Where a call is broken the message stays as it is, so that the model sees what it wrote.
    """
    calls = read_calls(message["content"])
    if not calls or any(call.error for call in calls):
        return message
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    text = WHOLE_CALL.sub("", message["content"]).strip()
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
