"""The prompt of a reply, also where the chat template knows no tools: they are then written out as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmcli.text.chat import encode_chat
from mmcli.text.chat_format import chat_format
from mmcli.text.messages import hide_messages, hide_tools, message_text
from mmcli.text.opaque import Texts
from mmcli.text.template import TOOLS_TEXT
from mmcli.text.tokenizer import Tokenizer

CALL_MARK, END_CALL_MARK = "<tool_call>", "</tool_call>"


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
) -> list[int]:
    """The ids that a reply of the assistant continues, the generation prompt at their end.

    Tools that the chat template does not know are text: see `fit_tools`.

    Raises:
        UserError: as `encode_chat`.
    """
    messages, tools = fit_tools(tokenizer, messages, tools)
    return encode_chat(tokenizer, messages, tools=tools, add_generation_prompt=True, thinking=thinking).ids


def fit_tools(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Messages and tools as they are, or where the chat template does not write tools or calls, messages with both.

    The tools are then described in the system message (in the first one of the user, where the template takes no
    system message), and calls and results are text, all in the words of our own template. To train such conversations,
    give the tokenizer a template that has tools: `encode_chat` refuses what its template does not write.

    Raises:
        UserError: the template cannot be used, or a message or a tool is of a wrong form.
    """
    if tools:
        fits = knows_tools(tokenizer)
    else:
        called = isinstance(messages, Sequence) and any(_is_of_call(each) for each in messages)
        fits = not called or chat_format(tokenizer).shows_calls
    return (messages, tools) if fits else (spell_tools(messages, tools, chat_format(tokenizer).shows_system), None)


def knows_tools(tokenizer: Tokenizer) -> bool:
    """True if the chat template shows the model its tools.

    Raises:
        UserError: the template cannot be used.
    """
    return chat_format(tokenizer).shows_tools


def _is_of_call(message: Any) -> bool:
    return isinstance(message, Mapping) and bool(message.get("role") == "tool" or message.get("tool_calls"))


def spell_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, in_system: bool = True
) -> list[dict[str, Any]]:
    """The messages with tools, calls and results as text, in the form of Hermes and Qwen.

    Args:
        in_system: the system message describes the tools, a new one where there is none; else the first message.

    Raises:
        UserError: a message or a tool of a wrong form, by its index.
    """
    hide_messages(messages, Texts())  # refuses what is no message
    hide_tools(tools, Texts())
    spelled: list[dict[str, Any]] = []
    after_result = False
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message["role"] == "tool":
            text = f"<tool_response>\n{message_text(message, place, optional=False)}\n</tool_response>"
            if after_result:
                spelled[-1]["content"] += "\n" + text
            else:
                spelled.append({"role": "user", "content": text})
        else:
            spelled.append(_spell_calls(message, place))
        after_result = message["role"] == "tool"
    if tools:
        told, first = _describe(tools), spelled[0]
        if first["role"] == "system":
            spelled[0] = {**first, "content": message_text(first, "messages[0]", optional=False) + "\n\n" + told}
        elif in_system:
            spelled.insert(0, {"role": "system", "content": told})
        else:
            spelled[0] = {**first, "content": told + "\n\n" + message_text(first, "messages[0]", optional=True)}
    return spelled


def _describe(tools: Sequence[Mapping[str, Any]]) -> str:
    begin, within, xml, form = TOOLS_TEXT
    listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return f"{begin}{listed}{within}{CALL_MARK}{END_CALL_MARK}{xml}{CALL_MARK}{form}{END_CALL_MARK}"


def _spell_calls(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """An assistant message with its calls behind its content."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    if not calls:
        return kept
    texts = [text] if (text := message_text(message, place, optional=True)) else []
    for call in calls:
        arguments = call.get("arguments", {})
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        name = json.dumps(call["name"], ensure_ascii=False)
        texts.append(f'{CALL_MARK}\n{{"name": {name}, "arguments": {written}}}\n{END_CALL_MARK}')
    return {**kept, "content": "\n".join(texts)}
