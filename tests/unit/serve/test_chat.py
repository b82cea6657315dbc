"""`/v1/chat/completions`, by the official client."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from mmcli.generate.generate import generate
from mmcli.generate.reply import reply_text
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.serve.models import serve_engine
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.prompt import spell_tools
from mmcli.text.tokenizer import Tokenizer

from .conftest import running

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "extra_body": {"repetition_penalty": 1}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def alone(engine: Any, tokenizer: Tokenizer, messages: Any, count: int) -> str:
    """The greedy reply of the library, without a server."""
    ids = encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    greedy = SamplingConfig(temperature=0, repetition_penalty=1)
    one = TorchEngine(engine.model)
    return reply_text(
        tokenizer, list(generate(one, 0, ids, greedy, max_new_tokens=count, stop_ids=stop_ids(tokenizer)))
    )


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_reply_is_that_of_the_library(server: Any, random_engine: Any, tokenizer: Tokenizer) -> None:
    answer = server.client.chat.completions.create(model="random", messages=HELLO, max_tokens=20, **GREEDY)
    choice = answer.choices[0]
    assert choice.message.content == alone(random_engine, tokenizer, HELLO, 20)
    assert (choice.message.role, choice.finish_reason, answer.object) == ("assistant", "length", "chat.completion")
    prompt = len(encode_chat(tokenizer, HELLO, add_generation_prompt=True).ids)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 20, prompt + 20)


def test_a_stream_adds_up_and_ends_with_the_usage(server: Any, random_engine: Any, tokenizer: Tokenizer) -> None:
    stream = server.client.chat.completions.create(
        model="random", messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert text_of(chunks) == alone(random_engine, tokenizer, HELLO, 20)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 20)
    assert len({chunk.id for chunk in chunks}) == 1


def test_replies_written_together_are_those_written_alone(
    server: Any, random_engine: Any, tokenizer: Tokenizer
) -> None:
    asked = [[{"role": "user", "content": "Hello " * (1 + 9 * number)}] for number in range(6)]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        stream = server.client.chat.completions.create(
            model="random", messages=asked[number], max_tokens=30, stream=True, **GREEDY
        )
        found[number] = text_of(stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: alone(random_engine, tokenizer, asked[number], 30) for number in range(6)}


def test_the_next_turn_reuses_the_cache(server: Any) -> None:
    turns = [{"role": "user", "content": "What is the rain on the hills today?"}]
    first = server.client.chat.completions.create(model="random", messages=turns, max_tokens=5, **GREEDY)
    turns += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "And now?"}]
    second = server.client.chat.completions.create(model="random", messages=turns, max_tokens=5, **GREEDY)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 2


def test_n_replies_have_seeds_of_their_own_and_share_the_prompt(server: Any) -> None:
    options: dict[str, Any] = {"model": "random", "messages": HELLO, "max_tokens": 12, "temperature": 1.5, "seed": 7}
    many = server.client.chat.completions.create(n=3, **options)
    texts = [choice.message.content for choice in many.choices]
    assert [choice.index for choice in many.choices] == [0, 1, 2] and len(set(texts)) == 3
    one = server.client.chat.completions.create(**{**options, "seed": 8})
    assert one.choices[0].message.content == texts[1]
    assert many.usage.prompt_tokens == one.usage.prompt_tokens and many.usage.completion_tokens > 12


def test_a_seed_repeats_a_reply_and_without_one_they_differ(server: Any) -> None:
    def reply(**options: Any) -> str:
        answer = server.client.chat.completions.create(
            model="random", messages=HELLO, max_tokens=12, temperature=1.5, **options
        )
        return str(answer.choices[0].message.content)

    assert reply(seed=-5) == reply(seed=-5) != reply()


def test_log_probabilities(server: Any, random_engine: Any, tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"model": "random", "messages": HELLO, "max_tokens": 8, "logprobs": True, **GREEDY}
    answer = server.client.chat.completions.create(top_logprobs=3, **options)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 8
    texts = [token for token in tokens if tokenizer.control_id(token.token) is None]
    joined = bytes(byte for token in texts for byte in token.bytes)
    assert joined.decode("utf-8", "replace") == answer.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == max(each.logprob for each in token.top_logprobs) == token.logprob
    prompt = encode_chat(tokenizer, HELLO, add_generation_prompt=True).ids
    logits = TorchEngine(random_engine.model).prefill(0, prompt).astype(float)
    expected = logits.max() - math.log(sum(math.exp(each) for each in logits))
    assert tokens[0].logprob == pytest.approx(expected, abs=1e-5)
    streamed = list(server.client.chat.completions.create(stream=True, **options))
    found = [each for chunk in streamed for each in (chunk.choices[0].logprobs or _none).content]
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in tokens], abs=1e-5)


class _none:
    content: tuple[()] = ()


def test_no_piece_of_a_stream_is_half_a_character(server: Any, writes: Callable[..., Any]) -> None:
    writes("界好世你 🙃é")
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in server.client.chat.completions.create(model="written", messages=HELLO, stream=True)
    ]
    assert "".join(pieces) == "界好世你 🙃é" and len(pieces) > 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_reply_before_it(server: Any, writes: Callable[..., Any], stream: bool) -> None:
    writes("The rain falls on the hills.", end=False)
    answer = server.client.chat.completions.create(
        model="written", messages=HELLO, stop=["never", "on the h"], stream=stream
    )
    if stream:
        chunks = list(answer)
        assert (text_of(chunks), chunks[-1].choices[0].finish_reason) == ("The rain falls ", "stop")
    else:
        assert answer.choices[0].message.content == "The rain falls "
        assert answer.choices[0].finish_reason == "stop"


def test_what_only_begins_like_a_stop_string_is_shown(server: Any, writes: Callable[..., Any]) -> None:
    writes("The rain falls on")
    answer = server.client.chat.completions.create(model="written", messages=HELLO, stop="on the hills")
    assert answer.choices[0].message.content == "The rain falls on"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_apart_from_the_content(server: Any, writes: Callable[..., Any], stream: bool) -> None:
    writes("<think>", "\nA cloud?\n", "</think>", "\n\nIt is water.")
    answer = server.client.chat.completions.create(model="written", messages=HELLO, stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert (reasoning, "".join(delta.content or "" for delta in deltas)) == ("A cloud?", "It is water.")
    else:
        message = answer.choices[0].message
        assert (message.reasoning_content, message.content) == ("A cloud?", "It is water.")
        assert answer.usage.completion_tokens_details.reasoning_tokens > 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_parsed(server: Any, writes: Callable[..., Any], stream: bool) -> None:
    call = '\n{"name": "add", "arguments": {"a": 2, "b": "三"}}\n'
    writes("<tool_call>", call, "</tool_call>", "\n", "<tool_call>", call, "</tool_call>")
    answer = server.client.chat.completions.create(model="written", messages=HELLO, tools=[TOOL], stream=stream)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert [call.index for call in calls] == [0, 1]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert reason == "tool_calls" and len({call.id for call in calls}) == 2
    assert {call.function.name for call in calls} == {"add"}
    assert json.loads(calls[0].function.arguments) == {"a": 2, "b": "三"}


def test_the_answer_of_a_tool_goes_back(server: Any, writes: Callable[..., Any]) -> None:
    writes("<tool_call>", '{"name": "add", "arguments": {"a": 2}}', "</tool_call>")
    create = server.client.chat.completions.create
    message = create(model="written", messages=HELLO, tools=[TOOL], parallel_tool_calls=False).choices[0].message
    writes("It is 4.")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4"}
    messages = [{"role": "developer", "content": "Be kind."}, *HELLO, message.model_dump(), result]
    assert create(model="written", messages=messages, tools=[TOOL]).choices[0].message.content == "It is 4."


@pytest.mark.parametrize("text", ['{"name": "add"', '{"arguments": {}}', '{"name": "add", "arguments": [1]}'])
def test_a_call_that_cannot_be_read_is_content(server: Any, writes: Callable[..., Any], text: str) -> None:
    writes("<tool_call>", text, "</tool_call>")
    choice = server.client.chat.completions.create(model="written", messages=HELLO, tools=[TOOL]).choices[0]
    assert choice.message.content == f"<tool_call>{text}</tool_call>"
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")


def test_without_tools_the_marks_of_a_call_are_text(server: Any, writes: Callable[..., Any]) -> None:
    writes("<tool_call>", '{"name": "add", "arguments": {}}', "</tool_call>")
    for options in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        message = server.client.chat.completions.create(model="written", messages=HELLO, **options).choices[0].message
        assert message.content.startswith("<tool_call>") and message.tool_calls is None


SCHEMA = {
    "type": "object",
    "properties": {"word": {"enum": ["rain", "云"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["word", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_fits_its_schema(server: Any, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    answer = server.client.chat.completions.create(
        model="random", messages=HELLO, response_format=form, temperature=1, seed=3, max_tokens=99, stream=stream
    )
    found = json.loads(text_of(answer) if stream else answer.choices[0].message.content)
    assert set(found) == {"word", "count"} and found["word"] in ("rain", "云") and 0 <= found["count"] <= 99


def test_a_reply_that_is_some_json_object(server: Any, writes: Callable[..., Any]) -> None:
    writes('{"a": [1, 2]}')
    options = {"model": "written", "messages": HELLO, "response_format": {"type": "json_object"}}
    assert json.loads(server.client.chat.completions.create(**options).choices[0].message.content) == {"a": [1, 2]}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_can_be_forced(server: Any, choice: Any) -> None:
    numbers = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": numbers}} for name in ("add", "subtract")]
    answer = server.client.chat.completions.create(
        model="random", messages=HELLO, tools=tools, tool_choice=choice, temperature=1, max_tokens=99
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name in (("add",) if isinstance(choice, dict) else ("add", "subtract"))
    assert json.loads(call.function.arguments)["a"] in (1, 2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "tool_calls")


def test_tools_of_a_model_whose_template_knows_none(toolless: Tokenizer, random_engine: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    engine = TorchEngine(random_engine.model, slots=1)
    with running({"plain": serve_engine("plain", engine, toolless, chat=True, queue=4)}) as server:
        create = server.client.chat.completions.create
        options = {"model": "plain", "tools": [tool], "temperature": 1, "max_tokens": 99}
        message = create(messages=HELLO, tool_choice="required", **options).choices[0].message
        [call] = message.tool_calls
        assert call.function.name == "add" and json.loads(call.function.arguments)["a"] in (1, 2)
        result = {"role": "tool", "tool_call_id": call.id, "content": "4"}
        answer = create(messages=[*HELLO, message.model_dump(), result], **options)
        spelled = f'{{"name": "add", "arguments": {call.function.arguments}}}'
        told = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": f"<tool_call>\n{spelled}\n</tool_call>"},
            {"role": "user", "content": "<tool_response>\n4\n</tool_response>"},
        ]
        messages = [spell_tools(HELLO, [tool])[0], *told]
        assert answer.usage.prompt_tokens == len(encode_chat(toolless, messages, add_generation_prompt=True).ids)


def test_the_context_bounds_a_reply(server: Any, writes: Callable[..., Any], written: Any) -> None:
    writes("rain ", end=False)
    answer = server.client.chat.completions.create(model="written", messages=HELLO)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == written.max_len


def test_a_model_that_only_continues_refuses_messages(server: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="only continues text; use /v1/completions"):
        server.client.chat.completions.create(model="base", messages=HELLO)
