"""`POST /v1/responses`: items in, items out. A request becomes one for chat, its reply becomes events.

The answer that is not a stream is the response in the last event of the stream.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from mmcli.serve import chat
from mmcli.serve.errors import ApiError, invalid
from mmcli.serve.models import ServedModel
from mmcli.serve.reader import Delta, ToolCall
from mmcli.serve.replies import Prompt, Replies, sampling_of, usage
from mmcli.serve.requests import ChatRequest, Function, FunctionName, JsonSchema, NamedTool, ResponseFormat, Tool
from mmcli.serve.responses_body import (
    CallItem,
    CallOutputItem,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponsesRequest,
    TextPart,
)
from mmcli.serve.scheduler import Finished

PARAMS = {"messages": "input", "response_format": "text.format"}  # of chat, as they are called here
Event = dict[str, Any]


def encode(model: ServedModel, body: ResponsesRequest) -> tuple[ChatRequest, Prompt]:
    """The request as one for chat, and its prompt.

    Raises:
        ApiError: see `chat.encode`.
    """
    asked = as_chat(body)
    try:
        return asked, dataclasses.replace(chat.encode(model, asked), param="input")
    except ApiError as error:
        error.param = PARAMS.get(error.param or "", error.param)
        raise


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """The request for chat that means the same; its parts are checked already.

    Raises:
        ApiError: a text format without what its type needs.
    """
    choice = body.tool_choice
    return ChatRequest.model_construct(
        **{name: getattr(body, name) for name in ("model", "temperature", "top_p", "top_k", "min_p", "seed")},
        repetition_penalty=body.repetition_penalty,
        messages=messages_of(body),
        max_completion_tokens=body.max_output_tokens,
        tools=None if body.tools is None else [Tool(type="function", function=_function(each)) for each in body.tools],
        tool_choice=(
            NamedTool(type="function", function=FunctionName(name=choice.name))
            if isinstance(choice, NamedFunction)
            else choice
        ),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body),
        logprobs=body.wants_logprobs,
        top_logprobs=body.top_logprobs,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def _function(tool: Function) -> Function:
    return Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _response_format(body: ResponsesRequest) -> ResponseFormat | None:
    form = None if body.text is None else body.text.format
    if form is None:
        return None
    if form.type != "json_schema":
        return ResponseFormat(type=form.type)
    if form.name is None or form.json_schema is None:
        raise invalid("json_schema needs a name and a schema", "text.format")
    return ResponseFormat(type=form.type, json_schema=JsonSchema(name=form.name, schema=form.json_schema))


def messages_of(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The messages of the instructions and the items: what an assistant wrote in a row is one message."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, CallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": _text(item.content)})
        else:
            if not messages or messages[-1]["role"] != "assistant" or _begins_anew(item, messages[-1]):
                messages.append({"role": "assistant"})
            _add_to(messages[-1], item)
    return messages


def _begins_anew(item: MessageItem | CallItem | ReasoningItem, message: dict[str, Any]) -> bool:
    """An assistant's message is reasoning, then text, then calls; True for an item that cannot follow what it has."""
    return bool(not isinstance(item, CallItem) and message.keys() & {"content", "tool_calls"})


def _add_to(message: dict[str, Any], item: MessageItem | CallItem | ReasoningItem) -> None:
    if isinstance(item, MessageItem):
        message["content"] = _text(item.content)
    elif isinstance(item, ReasoningItem):
        told = "".join(part.text for part in item.content or [])
        message["reasoning_content"] = message.get("reasoning_content", "") + told
    else:
        call = {"name": item.name, "arguments": item.arguments}
        message.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": call})


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Output:
    """The items of a response so far, and the events that tell of each new piece."""

    def __init__(self, model: ServedModel, *, logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._tokenizer = model.tokenizer
        self._wants_logprobs = logprobs
        self._open: dict[str, Any] | None = None  # the last item, while it grows
        self._blank = ""  # white space that is shown once text follows

    def push(self, delta: Delta) -> Iterator[Event]:
        """A piece of the reply: reasoning, then content, then calls."""
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning, None)
        if delta.content or (delta.logprobs and self._is_open("message")):
            text, self._blank = self._blank + delta.content, ""
            if text.isspace() and not self._is_open("message"):
                self._blank = text
            else:
                told = [chat.logprob_document(self._tokenizer, each) for each in delta.logprobs]
                yield from self._grow("message", text, told if self._wants_logprobs else [])
        for call in delta.calls:
            yield from self.close("completed")
            yield from self._call(call)

    def finish(self, status: str) -> Iterator[Event]:
        """The end of the reply, which has a message unless it has a call."""
        if not any(item["type"] in ("message", "function_call") for item in self.items):
            yield from self._grow("message", self._blank, [])
        yield from self.close(status)

    def close(self, status: str) -> Iterator[Event]:
        """The end of the item that is open, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        item["status"] = status
        part = item["content"][0]
        yield self._event(f"response.{part['type']}.done", content_index=0, text=part["text"], **_told(part))
        yield self._event("response.content_part.done", content_index=0, part=part)
        yield self._item_event("done")

    def _grow(self, kind: str, text: str, logprobs: list[Any] | None) -> Iterator[Event]:
        """Text for an open item of a kind, which is opened unless it is; `logprobs`: of output text."""
        if not self._is_open(kind):
            yield from self.close("completed")
            item: dict[str, Any] = {"id": _key("rs" if kind == "reasoning" else "msg"), "type": kind}
            kept: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            self._open = {**item, **kept, "status": "in_progress", "content": []}
            self.items.append(self._open)
            yield self._item_event("added")
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            if logprobs is not None:
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", content_index=0, part=dict(part))
            self._open["content"].append(part)
        part = self.items[-1]["content"][0]
        part["text"] += text
        if logprobs is not None:
            part["logprobs"] += logprobs
        if text or logprobs:
            told = {} if logprobs is None else {"logprobs": logprobs}
            yield self._event(f"response.{part['type']}.delta", content_index=0, delta=text, **told)

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _call(self, call: ToolCall) -> Iterator[Event]:
        item = {"id": _key("fc"), "type": "function_call", "status": "in_progress", "call_id": call.id}
        item |= {"name": call.name, "arguments": ""}
        self.items.append(item)
        yield self._item_event("added")
        item["arguments"] = call.arguments
        yield self._event("response.function_call_arguments.delta", delta=call.arguments)
        yield self._event("response.function_call_arguments.done", name=call.name, arguments=call.arguments)
        item["status"] = "completed"
        yield self._item_event("done")

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more}

    def _item_event(self, kind: str) -> Event:
        item = self.items[-1]
        told = {**item, "content": list(item["content"])} if "content" in item else dict(item)
        return {"type": f"response.output_item.{kind}", "output_index": len(self.items) - 1, "item": told}


def _told(part: dict[str, Any]) -> dict[str, Any]:
    return {"logprobs": part["logprobs"]} if "logprobs" in part else {}


def _key(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


async def stream(model: ServedModel, body: ResponsesRequest, replies: Replies) -> AsyncIterator[Event]:
    """The events of a response, numbered; an error on the way ends it as `response.failed`."""
    number = 0
    async for event in _events(model, body, replies):
        yield {**event, "sequence_number": number}
        number += 1


async def answer(model: ServedModel, body: ResponsesRequest, replies: Replies) -> dict[str, Any]:
    """The finished response.

    Raises:
        ApiError: it failed on the way.
    """
    response: dict[str, Any] = {}
    async for event in _events(model, body, replies, raises=True):
        response = event.get("response", response)
    return response


async def _events(
    model: ServedModel, body: ResponsesRequest, replies: Replies, *, raises: bool = False
) -> AsyncIterator[Event]:
    head = _head(model, body)
    output = Output(model, logprobs=body.wants_logprobs)
    yield {"type": "response.created", "response": head}
    yield {"type": "response.in_progress", "response": head}
    try:
        async for _, event in replies:
            if isinstance(event, Delta):
                for told in output.push(event):
                    yield told
                continue
            status = "incomplete" if event.reason == "length" else "completed"
            for told in output.finish(status):
                yield told
            yield {"type": f"response.{status}", "response": {**head, **_end(status, output, event)}}
    except ApiError as error:
        if raises:
            raise
        failed = {
            "status": "failed",
            "output": output.items,
            "error": {"code": "server_error" if error.status >= 500 else "invalid_prompt", "message": error.message},
        }
        yield {"type": "response.failed", "response": {**head, **failed}}


def _end(status: str, output: Output, finished: Finished) -> dict[str, Any]:
    counts: Any = usage([finished], 1)
    return {
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": output.items,
        "usage": {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        },
    }


def _head(model: ServedModel, body: ResponsesRequest) -> dict[str, Any]:
    """The response before anything is written: what was asked for, defaults filled in."""
    sampling = sampling_of(body)
    form = None if body.text is None or body.text.format is None else body.text.format
    choice = body.tool_choice
    return {
        "id": _key("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"} if form is None else form.model_dump(exclude_none=True, by_alias=True)},
        "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
        "tools": [
            {"parameters": None, "strict": None, **tool.model_dump(exclude_none=True)} for tool in body.tools or []
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }
