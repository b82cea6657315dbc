"""`POST /v1/chat/completions`: messages in, the assistant's turn out."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmcli.errors import MmcliError
from mmcli.generate.grammar import Grammar
from mmcli.serve.errors import invalid, of_library
from mmcli.serve.models import ServedModel
from mmcli.serve.reader import ChatReader, Delta, TokenLogprob, ToolCall
from mmcli.serve.replies import Prompt, Replies, Wanted, sampling_of, usage
from mmcli.serve.requests import ChatRequest, Function, NamedTool, Tool
from mmcli.serve.scheduler import Finished
from mmcli.text.prompt import CALL_MARK, encode_prompt
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Head:
    """What all chunks of an answer begin with."""

    object: str
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    def document(self, **more: Any) -> dict[str, Any]:
        """A document with these fields."""
        head = {"id": self.prefix + self.key, "object": self.object, "created": self.created, "model": self.model}
        return {**head, **more}


@dataclass
class Turn:
    """The assistant's turn so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, delta: Delta) -> None:
        """Append a piece."""
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.calls += delta.calls
        self.logprobs += delta.logprobs


def encode(model: ServedModel, body: ChatRequest) -> Prompt:
    """The prompt as the chat template writes it, with what the reply may be.

    A call that has to come is begun in the prompt, and its JSON follows a grammar.

    Raises:
        ApiError: messages that the template does not take, parameters that exclude each other, a schema that does not
            work, or a model that does not chat.
    """
    if not model.chat:
        raise invalid(f"{model.name} only continues text; use /v1/completions, or train it: mmcli sft", "model")
    _check(body)
    tokenizer, tools = model.tokenizer, body.usable_tools
    try:
        ids = encode_prompt(
            tokenizer,
            [_message(message) for message in body.messages],
            tools=[tool.model_dump(exclude_none=True) for tool in tools] or None,
            thinking=body.thinking,
        )
    except MmcliError as error:
        raise of_library(error, "messages") from None
    forced = forced_tools(body)
    if forced:
        mark = tokenizer.control_id(CALL_MARK)
        ids = [*ids, *(tokenizer.encode_text(f"{CALL_MARK}\n") if mark is None else [mark])]
    grammar = _grammar(model, body, forced)

    def reader() -> ChatReader:
        parallel = body.parallel_tool_calls is not False
        return ChatReader(
            tokenizer, body.stops, tools=bool(tools), parallel=parallel, prompt_ids=ids, begun=bool(forced)
        )

    return Prompt(ids, reader, "messages", grammar)


def _check(body: ChatRequest) -> None:
    """Refuse what excludes each other."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens and max_completion_tokens are the same; give one of them", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs", "top_logprobs")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise invalid("tool_choice needs tools", "tool_choice")
    form = body.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise invalid("json_schema goes with the type json_schema, and with no other", "response_format")
    if form is not None and form.type != "text" and body.usable_tools:
        raise invalid('a reply cannot be a tool call and JSON too; give tool_choice "none"', "response_format")


def forced_tools(body: ChatRequest) -> list[Tool]:
    """The tools of which one has to be called; none where the model may choose.

    Raises:
        ApiError: `tool_choice` names a tool that there is not.
    """
    if body.tool_choice == "required":
        return body.tools or []
    if not isinstance(body.tool_choice, NamedTool):
        return []
    name = body.tool_choice.function.name
    found = [tool for tool in body.tools or [] if tool.function.name == name]
    if not found:
        raise invalid(f'there is no tool "{name}"', "tool_choice")
    return found


def _grammar(model: ServedModel, body: ChatRequest, forced: Sequence[Tool]) -> Grammar | None:
    form, param = body.response_format, "tools" if forced else "response_format"
    if not forced and (form is None or form.type == "text"):
        return None
    try:
        if forced:
            grammar = Grammar.from_schema(model.tokenizer, {"anyOf": [_call_schema(tool.function) for tool in forced]})
        elif form is not None and form.json_schema is not None:
            grammar = Grammar.from_schema(model.tokenizer, form.json_schema.json_schema)
        else:
            grammar = Grammar.json_object(model.tokenizer)
        grammar.start(model.stops).allowed(model.engine.vocab_size)  # some schemas show only here that they do not work
    except MmcliError as error:
        raise invalid(f"{error.what}; {error.fix}", param) from None
    return grammar


def _call_schema(function: Function) -> dict[str, Any]:
    """The JSON of a call of a function."""
    properties = {"name": {"const": function.name}, "arguments": {"type": "object", **(function.parameters or {})}}
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what clients send along empty; `developer` is OpenAI's newer word for `system`."""
    kept = {key: value for key, value in message.items() if value not in (None, [])}
    return {**kept, "role": "system"} if kept.get("role") == "developer" else kept


def start(model: ServedModel, body: ChatRequest, prompt: Prompt) -> Replies:
    """Queue the replies.

    Raises:
        ApiError: they do not fit, or the queue is full.
    """
    wanted = Wanted(
        sampling_of(body),
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        n=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return Replies(model, [prompt], wanted)


async def collect(replies: Replies, count: int) -> list[Turn]:
    """The whole replies."""
    turns = [Turn() for _ in range(count)]
    async for index, event in replies:
        if isinstance(event, Finished):
            turns[index].finished = event
        else:
            turns[index].add(event)
    return turns


async def answer(model: ServedModel, body: ChatRequest, replies: Replies) -> dict[str, Any]:
    """The document of `chat.completion`."""
    turns = await collect(replies, body.n or 1)
    choices = [_choice(model.tokenizer, index, turn, bool(body.logprobs)) for index, turn in enumerate(turns)]
    ends = [turn.finished for turn in turns if turn.finished is not None]
    head = Head("chat.completion", model.name, "chatcmpl-")
    return head.document(choices=choices, usage=usage(ends, body.n or 1))


def _choice(tokenizer: Tokenizer, index: int, turn: Turn, with_logprobs: bool) -> dict[str, Any]:
    assert turn.finished is not None
    message: dict[str, Any] = {"role": "assistant", "content": turn.content, "refusal": None}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.calls:
        message["content"] = turn.content.strip() or None
        message["tool_calls"] = [_call(call) for call in turn.calls]
    logprobs = {"content": [logprob_document(tokenizer, each) for each in turn.logprobs], "refusal": None}
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs if with_logprobs else None,
        "finish_reason": turn.finished.reason,
    }


async def stream(model: ServedModel, body: ChatRequest, replies: Replies) -> AsyncIterator[dict[str, Any]]:
    """The documents of `chat.completion.chunk`; the first of each reply says whose turn it is."""
    head = Head("chat.completion.chunk", model.name, "chatcmpl-")
    count = body.n or 1
    calls: dict[int, int] = {}  # of each reply that has begun
    ends: dict[int, Finished] = {}
    empty: dict[str, Any] = {"usage": None} if body.wants_usage else {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return head.document(choices=[choice], **empty)

    async for index, event in replies:
        if index not in calls:
            calls[index] = 0
            yield chunk(index, {"role": "assistant", "content": ""})
        if isinstance(event, Finished):
            ends[index] = event
            yield chunk(index, {}, reason=event.reason)
            continue
        delta: dict[str, Any] = {}
        if event.content:
            delta["content"] = event.content
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.calls:
            delta["tool_calls"] = [{"index": calls[index] + i, **_call(call)} for i, call in enumerate(event.calls)]
            calls[index] += len(event.calls)
        told = {"content": [logprob_document(model.tokenizer, each) for each in event.logprobs], "refusal": None}
        yield chunk(index, delta, told if body.logprobs else None)
    if body.wants_usage:
        yield head.document(choices=[], usage=usage([ends[index] for index in range(count)], count))


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprob_document(tokenizer: Tokenizer, each: TokenLogprob) -> dict[str, Any]:
    """The log probability of a token, with those of the likeliest."""
    top = [_token(tokenizer, id, logprob) for id, logprob in each.top]
    return {**_token(tokenizer, each.id, each.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    """An id as text and as bytes; those of one character may be spread over several ids."""
    content = spelled(tokenizer, id)
    return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}


def spelled(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes of an id; a control token as it is written."""
    control = tokenizer.control_token(id)
    return tokenizer.token_bytes(id) if control is None else control.encode()
