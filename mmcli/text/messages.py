"""Messages and tools as people give them: checked, and with every text of theirs hidden behind a mark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmcli.errors import UserError, did_you_mean
from mmcli.text.opaque import TOOLS, Texts

# Roles are the template's control flow, so they are not hidden; a template may know fewer.
ROLES = ("system", "user", "assistant", "tool", "developer", "function")
# The same for the types of JSON Schema.
JSON_TYPES = frozenset(("function", "object", "array", "string", "number", "integer", "boolean", "null"))
# Names that clients give it, the first is the standard. As in transformers the first with a value is taken, and handed
# to the template as `reasoning_content` and `thinking`.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Keys that templates look up in tools and calls; all others a person chose.
SCHEMA_KEYS = JSON_TYPES | frozenset(
    (
        *("name", "description", "parameters", "arguments", "return", "returns", "strict", "id", "type", "title"),
        *("properties", "required", "items", "enum", "const", "default", "format", "nullable", "examples"),
        *("anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions", "additionalProperties"),
    )
)
# Keys of a message that are handled one by one; `train` says whether it is trained, and is none of the template's.
KNOWN = frozenset(("role", "content", "reasoning_content", "tool_calls", "train"))
PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def hide_messages(messages: Any, texts: Texts) -> list[dict[str, Any]]:
    """The messages for a template: role as it is, every other text as a mark of `texts`.

    A content in text parts (`[{"type": "text", "text": ...}]`) becomes one text, a missing one "".

    Raises:
        UserError: no messages, or one of a wrong form, by its index.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(
            f"messages = {_short(messages)} is not a list of messages", 'give [{"role": ..., "content": ...}]'
        )
    for index, message in enumerate(messages):
        _check_role(message, f"messages[{index}]")
    asked = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    # Templates drop the reasoning of turns before the last question on purpose: the model is not to see it again.
    return [_hide_message(message, index, texts, index > asked) for index, message in enumerate(messages)]


def _check_role(message: Any, place: str) -> None:
    if not isinstance(message, Mapping):
        raise UserError(f"{place} = {_short(message)} is not a message", 'give {"role": ..., "content": ...}')
    role = message.get("role")
    if role is None:
        raise UserError(f"{place} has no role", f"give it one of {', '.join(ROLES[:4])}")
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"{place}: there is no role {_short(role)}", did_you_mean(str(role), list(ROLES[:4])))


def _hide_message(message: Mapping[str, Any], index: int, texts: Texts, keep_reasoning: bool) -> dict[str, Any]:
    place = f"messages[{index}]"
    hidden = {
        key: hide(value, texts, index, f"{place}.{key}", required=False)
        for key, value in message.items()
        if key not in KNOWN and isinstance(key, str) and PLAIN_KEY.fullmatch(key)
    }
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    calls = message.get("tool_calls")
    content = message_text(message, place, optional=message["role"] == "assistant" and bool(calls or reasoning))
    hidden |= {"role": str(message["role"]), "content": texts.hide(content, index, f"{place}.content")}
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise UserError(f"{place}.reasoning_content = {_short(reasoning)} is not text", "give it as text")
        needed = f"{place}.reasoning_content" if keep_reasoning else None
        shown = texts.hide(reasoning, index, needed)
        others = [name for name in REASONING[1:] if message.get(name) == reasoning]
        hidden = {"thinking": shown, **hidden, **dict.fromkeys(others, shown), "reasoning_content": shown}
    if calls:
        hidden["tool_calls"] = _hide_calls(calls, index, texts, f"{place}.tool_calls")
    return hidden


def message_text(message: Mapping[str, Any], place: str, *, optional: bool) -> str:
    """The content of a message, whose text parts are put together.

    Raises:
        UserError: there is none where it is not `optional`, or it is not text.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if optional:
            return ""
        raise UserError(f"{place} has no content", 'give it "content", which may be ""')
    if not isinstance(content, list) or not all(_is_text_part(part) for part in content):
        raise UserError(f"{place}.content = {_short(content)} is not text", "give text, or a list of text parts")
    return "".join(part["text"] for part in content)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _hide_calls(calls: Any, index: int, texts: Texts, place: str) -> list[dict[str, Any]]:
    """Tool calls, `{"function": {"name", "arguments"}}` or flat; arguments are an object or its JSON text."""
    if not isinstance(calls, list):
        raise UserError(f"{place} = {_short(calls)} is not a list", 'give [{"name": ..., "arguments": {...}}]')
    hidden = []
    for number, call in enumerate(calls):
        here = f"{place}[{number}]"
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f"{here} = {_short(call)} has no function name", 'give {"name": ..., "arguments": {...}}')
        arguments = function.get("arguments", {})
        if not isinstance(arguments, str | Mapping):
            raise UserError(f"{here}.arguments = {_short(arguments)} is no object", "give an object or its JSON text")
        named = {
            "name": texts.hide(function["name"], index, f"{here}.name"),
            "arguments": hide(arguments, texts, index, f"{here}.arguments", keys_are_text=True),
        }
        rest = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
        outer = hide(rest, texts, index, here, required=False)
        hidden.append({**outer, "function": named} if "function" in call else {**outer, **named})
    return hidden


def hide_tools(tools: Any, texts: Texts) -> list[dict[str, Any]] | None:
    """The tools (JSON Schema functions) for a template, None for none.

    Raises:
        UserError: they are not a list of objects.
    """
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"tools = {_short(tools)} is not a list of objects", 'give [{"type": "function", ...}]')
    return [hide(tool, texts, TOOLS, f"tools[{number}]") for number, tool in enumerate(tools)]


def hide(
    value: Any, texts: Texts, owner: int, place: str, *, required: bool = True, keys_are_text: bool = False
) -> Any:
    """`value` (JSON) with its strings as marks; the types of JSON Schema stay.

    Keys stay where a template looks them up; those that a person chose (of arguments and properties) are texts too.

    Raises:
        UserError: something that is not JSON.
    """
    if isinstance(value, str):
        return texts.hide(value, owner, place if required else None)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [
            hide(item, texts, owner, f"{place}[{number}]", required=required, keys_are_text=keys_are_text)
            for number, item in enumerate(value)
        ]
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{place} = {_short(value)} is not JSON", "give texts, numbers, lists and objects")
    hidden: dict[str, Any] = {}
    for key, item in value.items():
        here = f"{place}.{key}"
        as_text = keys_are_text or key not in SCHEMA_KEYS
        name = texts.hide(key, owner, here if required else None) if as_text else key
        if key == "type" and not keys_are_text and _is_json_type(item):
            hidden[name] = item
        elif key == "properties" and not keys_are_text and isinstance(item, Mapping):
            hidden[name] = _hide_properties(item, texts, owner, here, required)
        else:
            hidden[name] = hide(item, texts, owner, here, required=required, keys_are_text=keys_are_text)
    return hidden


def _hide_properties(
    properties: Mapping[str, Any], texts: Texts, owner: int, place: str, required: bool
) -> dict[str, Any]:
    """The parameters of a JSON Schema: their names are texts, what they hold are schemas again."""
    return {
        texts.hide(str(name), owner, place if required else None): hide(
            schema, texts, owner, f"{place}.{name}", required=required
        )
        for name, schema in properties.items()
    }


def _is_json_type(value: Any) -> bool:
    types = value if isinstance(value, list) else [value]
    return all(isinstance(each, str) and each in JSON_TYPES for each in types)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
