"""The prompt of a reply, with the tools as text where the chat template knows none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.text.chat import encode_chat
from mmcli.text.prompt import encode_prompt, knows_tools, spell_tools
from mmcli.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "你"}}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": [{"type": "text", "text": "4"}]},
    {"role": "assistant", "content": "Both:", "tool_calls": [{"name": "add", "arguments": '{"a": 1}'}]},
    {"role": "tool", "content": "5"},
    {"role": "user", "content": "And now?"},
]


def text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, keep_special=True)


def test_a_template_with_tools_writes_them_itself(tokenizer: Tokenizer) -> None:
    assert knows_tools(tokenizer)
    expected = encode_chat(tokenizer, TALK, tools=[TOOL], add_generation_prompt=True).ids
    assert encode_prompt(tokenizer, TALK, tools=[TOOL]) == expected


def test_without_tools_nothing_is_spelled(toolless: Tokenizer) -> None:
    assert not knows_tools(toolless)
    assert encode_prompt(toolless, TALK[:2]) == encode_chat(toolless, TALK[:2], add_generation_prompt=True).ids


@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[:2]])
def test_tools_are_spelled_as_our_template_writes_them(
    toolless: Tokenizer, tokenizer: Tokenizer, messages: list[dict[str, Any]]
) -> None:
    """Line by line the prompt of our template, but for the keys of a tool, whose order templates choose."""
    shown, ours = (
        text(toolless, encode_prompt(toolless, messages, tools=[TOOL])),
        encode_prompt(tokenizer, messages, tools=[TOOL]),
    )
    tool = re.compile(r"<tools>\n.*\n</tools>")
    assert tool.sub("", shown).splitlines() == tool.sub("", text(tokenizer, ours)).splitlines()
    assert '{"name": "add", "description": "Add.", "parameters": {"type": "object"}}' in shown


def test_messages_are_left_as_they_are() -> None:
    before = [dict(each) for each in TALK]
    spell_tools(TALK, [TOOL])
    assert before == TALK


BLOCK = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS = "{% for m in messages %}" + BLOCK + "{% endfor %}" + PROMPT


@pytest.mark.parametrize(
    "tools",
    [
        "{% for n, p in tools[0].function.parameters.properties.items() %}{{ n }}{% endfor %}{{ tools | tojson }}",
        "{% if messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}",
    ],
)
def test_templates_that_write_tools_in_their_own_way(templated: Callable[..., Tokenizer], tools: str) -> None:
    assert knows_tools(templated("{% if tools %}" + tools + "{% endif %}" + TURNS))


def test_a_template_that_writes_calls_and_no_tools_writes_calls(templated: Callable[..., Tokenizer]) -> None:
    call = "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson }}{% endfor %}"
    tokenizer = templated(TURNS.replace("<|im_end|>' }}", "' }}" + call + "{{ '<|im_end|>' }}"))
    talk = [TALK[1], TALK[2], TALK[3]]
    assert not knows_tools(tokenizer)
    assert encode_prompt(tokenizer, talk) == encode_chat(tokenizer, talk, add_generation_prompt=True).ids
    assert "<tool_call>" in text(tokenizer, encode_prompt(tokenizer, talk, tools=[TOOL]))


def test_without_a_system_message_the_first_one_describes_the_tools(templated: Callable[..., Tokenizer]) -> None:
    refuse = "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = templated("{% for m in messages %}" + refuse + BLOCK + "{% endfor %}" + PROMPT)
    shown = text(tokenizer, encode_prompt(tokenizer, TALK[1:2], tools=[TOOL]))
    assert shown.startswith("<|im_start|>user\n# Tools\n") and shown.count("1 + 2?<|im_end|>") == 1
    with pytest.raises(UserError, match="no system role"):
        encode_prompt(tokenizer, TALK[:2], tools=[TOOL])


def test_training_keeps_to_what_the_template_shows(toolless: Tokenizer) -> None:
    with pytest.raises(UserError, match="loses text: tools"):
        encode_chat(toolless, TALK[:2], tools=[TOOL])


@pytest.mark.parametrize(
    "messages", [None, 3, [], [3], [{"role": "tool"}], [{"role": "king", "content": "x", "tool_calls": [CALL]}]]
)
def test_what_is_no_message_is_refused(toolless: Tokenizer, messages: Any) -> None:
    with pytest.raises(UserError):
        encode_prompt(toolless, messages, tools=[TOOL])
