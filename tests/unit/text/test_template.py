"""Our template as it is written down, and the sandbox that renders it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.text.opaque import Plain, Texts
from mmcli.text.sandbox import compile_template, render
from mmcli.text.template import CHATML

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def rendered(messages: list[dict[str, Any]], source: str = CHATML, **variables: Any) -> str:
    return render(compile_template(source), Plain(), {"messages": messages, **variables})


def test_turns() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )
    assert rendered(messages) == expected
    assert rendered(messages, add_generation_prompt=True) == expected + "<|im_start|>assistant\n"


def test_reasoning() -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "Sum."}]
    assert rendered(messages) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\nSum.\n</think>\n\n4<|im_end|>\n"
    )


def test_tools() -> None:
    calls = [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}},
        {"name": "weather", "arguments": '{"city": "Paris"}'},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "One more.", "tool_calls": calls[1:]},
    ]
    expected = """<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
@TOOL@
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
Weather?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "weather", "arguments": {"city": "Köln"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
rain
</tool_response>
<tool_response>
sun
</tool_response><|im_end|>
<|im_start|>assistant
One more.
<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call><|im_end|>
"""
    tool = (
        '{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
    )
    assert rendered(messages, tools=[WEATHER]) == expected.replace("@TOOL@", tool)


def test_tools_without_a_system_message() -> None:
    text = rendered([{"role": "user", "content": "Hi"}], tools=[WEATHER])
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


def test_a_later_system_message_keeps_its_place() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "S"}]
    assert rendered(messages).endswith("Hi<|im_end|>\n<|im_start|>system\nS<|im_end|>\n")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(UserError, match='there is no role "robot"; known: system, user, assistant, tool'):
        rendered([{"role": "robot", "content": "x"}])


def test_constructs_of_other_templates() -> None:
    source = """{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- generation %}{{ m.content | trim }}{% endgeneration %}
{%- endfor %}{{ strftime_now('%Y') | length }}{{ bos_token }}"""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " u "}]
    assert rendered(messages, source) == "u4"
    assert rendered(messages, source, bos_token="<s>") == "u4<s>"
    assert rendered([], "{% if true %}\nx\n{% endif %}\ny") == "x\ny"  # blocks take their line with them


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ 1 + 'a' }}",
        "{{ messages[99].content }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="the chat template refuses this conversation"):
        rendered([], source)


def test_broken_jinja_is_told_with_its_line() -> None:
    with pytest.raises(UserError, match="not valid Jinja: line 2"):
        compile_template("x\n{% if %}")


LOOP = "{% for a in range(99999) %}BODY{% endfor %}"
GROWING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("BODY", LOOP),
        LOOP.replace("BODY", LOOP.replace("BODY", LOOP)),
        LOOP.replace("BODY", "{{ range(99999) | list | length }}"),
        LOOP.replace("BODY", "{{ range(99999) | map('string') | join }}"),
        LOOP.replace("BODY", "{{ 'x' * 99999 }}"),
        "{{ 'a' * 3000000000 }}",
        "{{ [0] * 3000000000 }}",
        "{{ 3000000000 * 'a' }}",
        GROWING.replace("STEP", "ns.x + ns.x"),
        GROWING.replace("STEP", "ns.x ~ ns.x"),
        GROWING.replace("STEP", "ns.x | replace('', ns.x)"),
        GROWING.replace("STEP", "ns.x.replace('a', ns.x)"),
        GROWING.replace("STEP", "ns.x.join([ns.x, ns.x])"),
        GROWING.replace("STEP", "[ns.x, ns.x] | join(ns.x)"),
        GROWING.replace("'ab'", "7").replace("STEP", "ns.x * ns.x"),
        "{{ 2 ** 3000000000 }}",
        "{{ '%3000000000d' % 1 }}",
        "{{ '%*d' % (3000000000, 1) }}",
        "{{ '{:3000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 3000000000) }}",
        "{{ 'a'.center(3000000000) }}",
        "{{ 'a'.zfill(3000000000) }}",
        "{{ 'a' | indent(3000000000, true) }}",
        "{{ [1] | tojson(indent=3000000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for x in range(9999) recursive %}{% if loop.depth < 9 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}",
        LOOP.replace("BODY", "{{ messages[0].content }}"),
    ],
)
def test_a_template_can_not_take_the_machine(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="the chat template was stopped: ") as refused:
        rendered([{"role": "user", "content": "x" * 9999}], source)
    assert "another chat template" in refused.value.fix
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("source", ["{{ lipsum(n=3000000000) }}", "{{ 'a' | center(3000000000) }}", "{{ 'a'.pad() }}"])
def test_what_no_chat_template_needs_is_not_there(source: str) -> None:
    with pytest.raises(UserError, match=r"not valid Jinja|refuses this conversation"):
        rendered([], source)


@pytest.mark.parametrize("source", ["(" * 3000 + "1" + ")" * 3000, "-" * 9000 + "1"])
def test_a_template_that_is_nested_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"nested too deeply|stopped"):
        rendered([], "{{ " + source + " }}")
    blocks = "{% for a in [1] %}" * 40 + "x" + "{% endfor %}" * 40
    with pytest.raises(UserError, match="nested too deeply"):
        compile_template(blocks)


def test_the_time_is_the_same_in_both_renderings() -> None:
    texts = Texts()
    assert render(compile_template("{{ strftime_now('%f') }}"), texts, {}) == f"{texts.now:%f}"
    twin = Plain()
    twin.now = texts.now
    assert render(compile_template("{{ strftime_now('%f') }}"), twin, {}) == f"{texts.now:%f}"
