"""`/v1/responses`, by the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from mmcli.serve.responses import messages_of
from mmcli.serve.responses_body import ResponsesRequest
from mmcli.text.tokenizer import Tokenizer

PATH = "/v1/responses"
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "extra_body": {"repetition_penalty": 1}}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = '{"name": "add", "arguments": {"a": 2}}'


def test_a_response_is_the_reply_of_chat(server: Any) -> None:
    asked = [{"role": "system", "content": "Be kind."}, *HELLO]
    chat = server.client.chat.completions.create(model="random", messages=asked, max_tokens=20, **GREEDY)
    response = server.client.responses.create(
        model="random", instructions="Be kind.", input="Hello", max_output_tokens=20, **GREEDY
    )
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.instructions, response.temperature, response.store) == ("Be kind.", 0, False)
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert (response.usage.output_tokens, response.usage.total_tokens) == (20, chat.usage.prompt_tokens + 20)


def test_a_stream_ends_in_the_whole_response(server: Any, writes: Callable[..., Any]) -> None:
    writes("<think>", "\nA cloud?\n", "</think>", "\n\nIt is water. ", "<tool_call>", CALL, "</tool_call>")
    events = list(server.client.responses.create(model="written", input=HELLO, tools=[TOOL], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    message = ["output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done"]
    assert kinds == [
        f"response.{kind}"
        for kind in (
            *("created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.done"),
            *("content_part.done", "output_item.done", *message),
            *("output_item.added", "function_call_arguments.done", "output_item.done", "completed"),
        )
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    reasoning = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    response = events[-1].response
    assert (reasoning, text) == ("A cloud?", "It is water. ") and response.output_text == text
    assert [(item.type, item.status) for item in response.output] == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "completed"),
    ]
    assert [item.id for item in response.output] == [
        event.item.id for event in events if event.type == "response.output_item.added"
    ]
    assert response.output[0].content[0].text == "A cloud?" and response.usage.output_tokens_details.reasoning_tokens
    assert json.loads(response.output[2].arguments) == {"a": 2}
    whole = server.client.responses.create(model="written", input=HELLO, tools=[TOOL])
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]


def test_the_helper_of_the_client_reads_a_stream(server: Any, writes: Callable[..., Any]) -> None:
    writes("It is water.")
    with server.client.responses.stream(model="written", input="Hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        response = stream.get_final_response()
    assert text == response.output_text == "It is water." and response.status == "completed"


def test_calls_and_their_results_go_back_as_items(server: Any, writes: Callable[..., Any]) -> None:
    create = server.client.responses.create
    writes("<think>", "hm", "</think>", "<tool_call>", CALL, "</tool_call>", "\n", "<tool_call>", CALL, "</tool_call>")
    first = create(model="written", input=HELLO, tools=[TOOL], instructions="Be kind.")
    calls = [item for item in first.output if item.type == "function_call"]
    assert len({call.call_id for call in calls}) == 2 and "".join(item.type[0] for item in first.output) == "rff"
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "4"} for call in calls]
    writes("It is 4.")
    for output in (first.output, [item.model_dump() for item in first.output]):
        second = create(model="written", input=[*HELLO, *output, *results], tools=[TOOL])
        assert second.output_text == "It is 4."


def test_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}", "namespace": None},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "4"}]},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert messages_of(ResponsesRequest(model="m", input=items, instructions="i")) == [
        {"role": "system", "content": "i"},
        {"role": "developer", "content": "ab"},
        {"role": "assistant", "reasoning_content": "r", "content": "c", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_format(server: Any, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    found = server.client.responses.create(
        model="random", input="Hello", text=form, max_output_tokens=60, stream=stream
    )
    text = list(found)[-1].response.output_text if stream else found.output_text
    assert json.loads(text)["a"] in (1, 2)


def test_a_call_can_be_forced(server: Any) -> None:
    numbers = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    choice = {"type": "function", "name": "add"}
    tools = [{**TOOL, "parameters": numbers}, {**TOOL, "name": "subtract"}]
    options = {"tools": tools, "tool_choice": choice, "max_output_tokens": 99}
    response = server.client.responses.create(model="random", input="Hello", **options)
    [call] = response.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 1})
    assert (response.tool_choice.name, [tool.name for tool in response.tools]) == ("add", ["add", "subtract"])


def test_log_probabilities(server: Any) -> None:
    options: dict[str, Any] = {"model": "random", "input": "Hello", "max_output_tokens": 6, "top_logprobs": 2, **GREEDY}
    response = server.client.responses.create(include=["message.output_text.logprobs"], **options)
    tokens = response.output[0].content[0].logprobs
    assert len(tokens) == 6 and all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    events = list(server.client.responses.create(stream=True, **options))
    told = [each for event in events if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [each.token for each in told] == [token.token for token in tokens]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "give the whole conversation in input"),
        ({"conversation": {"id": "c"}}, "conversation", "give it whole in input"),
        ({"store": True}, "store", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]", "output_text.logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [TOOL]}, "tool_choice", 'no tool "f"'),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "a name and a schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "king"}}}}, "text.format", "king"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "give one of message, function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "input_text"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "a"}]}, "input[0].arguments", "missing"),
        ({"input": "rain " * 4000}, "input", "the context holds"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"messages": HELLO}, "messages", "no such parameter"),
        ({"metadata": {"a": float("inf")}}, None, "not valid JSON"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(server: Any, change: dict[str, Any], param: str | None, message: str) -> None:
    status, document = server.post(PATH, {"model": "random", "input": "Hello", "max_output_tokens": 3, **change})
    error = document["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param), document
    assert message in error["message"]


def test_as_many_items_as_may_be_with_instructions(server: Any) -> None:
    status, document = server.post(
        PATH, {"model": "random", "input": HELLO * 4096, "instructions": "a", "max_output_tokens": 1}
    )
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")


def test_a_number_too_large_is_refused(server: Any) -> None:
    body = b'{"model": "random", "input": "a", "metadata": {"a": 1e999}}'
    assert server.post(PATH, body)[0] == 400


def test_a_failure_on_the_way_ends_the_stream(server: Any, writes: Callable[..., Any], tokenizer: Tokenizer) -> None:
    engine = writes("The rain falls", end=False)
    engine.broken = tokenizer.encode_text("Hello")[-1]
    events = list(server.client.responses.create(model="written", input="Hello", stream=True))
    assert events[-1].type == "response.failed" and "not finite" in events[-1].response.error.message
    with pytest.raises(openai.InternalServerError, match="not finite"):
        server.client.responses.create(model="written", input="Hello")
