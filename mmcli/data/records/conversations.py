"""Conversations as people store them, brought into one shape: messages as in Hugging Face templates.

Read shapes: `messages`/`conversations` (or their JSON text) with `role`/`content` or `from`/`value`; tool calls as
`tool_calls` or as a `function_call` turn; a question and an answer under `instruction`/`input`/`output` and the like,
with an optional `system` and a `history` of pairs; `prompt` and `completion` as messages, of which the latter are
trained. Placeholders such as `{{name}}` are left as they are. `weight` 0 and `train` false keep a message of the
assistant from being trained; keys whose meaning would be lost are refused by name. Reasoning is read from
`reasoning_content`, and for templates that show it (`split_reasoning`) from a `<think>...</think>` with which an
assistant's text begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.data.record import Record, RecordError
from mmcli.data.records.kinds import PAIR_KEYS, TURN_KEYS, RecordKind, has_pair, has_turns, is_chat, is_turns

Message = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call",), "function_call"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
}
# Whether a message is trained: OpenAI's, axolotl's two, ms-swift's.
TRAIN_KEYS = ("weight", "train", "training", "loss")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Keys that change what a message or a record is for; without them it would train something else.
MESSAGE_MEANINGS = (
    "train_detail",
    "training_detail",
    "loss_scale",
    "loss_weight",
    "mask",
    "masked",
    "prefix",
    "refusal",
)
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
RECORD_MEANINGS = ("chat_template_kwargs",)
THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True)
class Chat:
    """One conversation and the tools it may call.

    Its messages have `role`, `content`, `reasoning_content`, `tool_calls`, and `train` False where one is not trained.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


def as_chat(record: Record) -> Chat:
    """The conversation of a chat record.

    Raises:
        RecordError: it is of another kind, a turn is not understood, or no assistant message is in it.
    """
    CHAT.check(record)
    chat = read_chat(record.value)
    if not any(message["role"] == "assistant" for message in chat.messages):
        raise RecordError("no assistant message: there is nothing to learn from")
    return chat


def read_chat(value: Mapping[str, Any]) -> Chat:
    """The messages and tools of a chat record, without asking that it ends in a reply.

    Raises:
        RecordError: a turn, a role or a tool that is not understood.
    """
    check_meaning(value)
    if has_turns(value):
        turns = parse_json(
            next(value[key] for key in TURN_KEYS if is_turns(value.get(key))), "the messages are not JSON"
        )
        messages = read_messages(turns)
    elif has_pair(value):
        messages = _read_pair(value)
    else:
        raise RecordError(f"not a conversation: it has {_keys(value)}")
    return Chat(_with_system(messages, value.get("system")), read_tools(value, messages))


def check_meaning(value: Mapping[str, Any]) -> None:
    """Refuse a record with fields whose meaning would be lost.

    Raises:
        RecordError: it has one, by name.
    """
    for key in (*RECORD_MEANINGS, *MEDIA):
        if value.get(key):
            raise RecordError(f'"{key}" of a record is not supported')


def read_messages(turns: Sequence[Any]) -> list[Message]:
    """Turns with `role`/`content` or `from`/`value`, as messages.

    Raises:
        RecordError: a turn that is not understood, with its number (from 1).
    """
    messages: list[Message] = []
    numbers: list[int] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise RecordError(f"a message is not an object: message {number}")
        message = _read_turn(turn, number)
        if _completes(messages, message):  # "let me look" and the call that follows are one reply
            messages[-1]["tool_calls"] = message["tool_calls"]
        else:
            messages.append(message)
            numbers.append(number)
    if not messages:
        raise RecordError("the conversation is empty")
    for message, number in zip(messages, numbers, strict=True):
        if message["role"] == "assistant" and not (_split(message)["content"].strip() or "tool_calls" in message):
            raise RecordError(f"an assistant message is empty: message {number}")
    return messages


def assistant_message(text: str) -> Message:
    """An assistant's message of this text, reasoning and all."""
    return {"role": "assistant", "content": text}


def says_nothing(message: Message) -> bool:
    """True if a message has no text beside a `<think>...</think>`."""
    return not _split(message)["content"].strip()


def split_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Messages for a template that shows reasoning, which writes the tags around it itself.

    A `<think>...</think>` that an assistant's text begins with becomes its `reasoning_content`, without the tags.
    """
    return [_split(message) if message["role"] == "assistant" else message for message in messages]


def _split(message: Message) -> Message:
    found = None if "reasoning_content" in message else THOUGHT.fullmatch(message["content"])
    if found is None:
        return message
    split = {**message, "content": found[2].lstrip("\r\n")}
    reasoning = found[1].strip("\r\n")
    return {**split, "reasoning_content": reasoning} if reasoning.strip() else split


def _completes(messages: Sequence[Message], message: Message) -> bool:
    previous = messages[-1] if messages else {}
    is_call = "tool_calls" in message and not message["content"] and "reasoning_content" not in message
    alike = message.get("train") == previous.get("train")
    return is_call and alike and previous.get("role") == "assistant" and "tool_calls" not in previous


def _read_turn(turn: Mapping[str, Any], number: int) -> Message:
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise RecordError(f"a message has no known role: message {number} has {name!r}")
    for key in (*MESSAGE_MEANINGS, *MEDIA):
        if turn.get(key):
            raise RecordError(f'"{key}" of a message is not supported: message {number}')
    train = _read_train(turn, number, speaks=role in ("assistant", "function_call"))
    content = turn.get("content", turn.get("value"))
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _read_calls(content, number), **train}
    calls = (turn.get("tool_calls") or turn.get("function_call")) if role == "assistant" else None
    message: Message = {"role": role, "content": _read_content(content, number, calls), **train}
    if role == "assistant":
        reasoning = next((turn[key] for key in REASONING_KEYS if turn.get(key)), None)
        if isinstance(reasoning, str):
            message["reasoning_content"] = reasoning
        elif reasoning is not None:
            raise RecordError(f"the reasoning of a message is not text: message {number}")
        if calls:
            message["tool_calls"] = _read_calls(calls, number)
    if role == "tool":
        message.update({key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)})
    return message


def _read_train(turn: Mapping[str, Any], number: int, *, speaks: bool) -> Message:
    """`train` False for a message that is not to be trained, else nothing."""
    given = {key: turn[key] for key in TRAIN_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise RecordError(f'the "{key}" of a message is neither 0 nor 1: message {number} has {value!r}')
        if value and not speaks:
            raise RecordError(f'"{key}" is set for a message that is not the assistant\'s: message {number}')
    if len({bool(value) for value in given.values()}) > 1:
        raise RecordError(f"{' and '.join(given)} of a message disagree: message {number}")
    return {"train": False} if speaks and given and not any(given.values()) else {}


def _read_content(content: Any, number: int, tool_calls: Any) -> str:
    if content is None and tool_calls:
        return ""
    if isinstance(content, list):  # parts, as in multimodal chats: text parts only
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    if isinstance(content, Mapping):  # a tool's result given as an object
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise RecordError(f"a message has no text: message {number}")
    return content


def _read_calls(raw: Any, number: int) -> list[dict[str, Any]]:
    calls = parse_json(raw, f"a tool call is not JSON: message {number}")
    calls = calls if isinstance(calls, list) else [calls]
    result = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RecordError(f"a tool call has no name: message {number}")
        problem = f"a tool call's arguments are not a JSON object: message {number}"
        arguments = parse_json(function.get("arguments", {}) or {}, problem)
        if not isinstance(arguments, Mapping):
            raise RecordError(problem)
        entry: dict[str, Any] = {"type": "function"}
        if isinstance(call.get("id"), str):
            entry["id"] = call["id"]
        result.append({**entry, "function": {"name": function["name"], "arguments": dict(arguments)}})
    if not result:
        raise RecordError(f"a tool call has no name: message {number}")
    return result


def parse_json(raw: Any, problem: str) -> Any:
    """`raw` itself, or what it spells where it is a string.

    Raises:
        RecordError: a string that is not JSON; `problem` is the reason given.
    """
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise RecordError(problem) from None


def read_tools(value: Mapping[str, Any], messages: Sequence[Message] = ()) -> list[dict[str, Any]] | None:
    """The tools of a record, given as a list or as its JSON text under `tools` or `functions`, or in its first turn.

    Raises:
        RecordError: tools that are not a list of named functions.
    """
    raw = value.get("tools") or value.get("functions")
    for key in TURN_KEYS:
        turns = value.get(key)
        if not raw and is_turns(turns):
            turns = parse_json(turns, "the messages are not JSON")
        if not raw and isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            raw = turns[0].get("tools") or turns[0].get("functions")
    if not raw or (isinstance(raw, str) and not raw.strip()):
        return None
    tools = parse_json(raw, "the tools are not JSON")
    if not isinstance(tools, list):
        raise RecordError("the tools are not a list")
    result = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RecordError("a tool has no name")
        result.append({"type": "function", "function": dict(function)})
    return result or None


def read_prompt(value: Mapping[str, Any]) -> list[Message]:
    """The messages before the reply of an `instruction`/`prompt` record: system, history, question.

    Raises:
        RecordError: a part that is not text.
    """
    question_key = next((key for pair in PAIR_KEYS for key in pair[:1] if key in value), None)
    if question_key is None:
        raise RecordError(f"no prompt: it has {_keys(value)}")
    prompt = value[question_key]
    if isinstance(prompt, list):
        return _with_system(read_messages(prompt), value.get("system"))
    parts = [_text(value, question_key), _text(value, "input") if value.get("input") else ""]
    question = "\n".join(part for part in parts if part.strip())
    if not question:
        raise RecordError(f'"{question_key}" is empty')
    messages: list[Message] = []
    for pair in _history(value):
        messages += [{"role": "user", "content": pair[0]}, assistant_message(pair[1])]
    return _with_system([*messages, {"role": "user", "content": question}], value.get("system"))


def _history(value: Mapping[str, Any]) -> list[Sequence[str]]:
    history = value.get("history") or []
    if not isinstance(history, list):
        raise RecordError('"history" is not a list of pairs')
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise RecordError('"history" is not a list of pairs')
    return history


def _read_pair(value: Mapping[str, Any]) -> list[Message]:
    answer_key = next(answer for question, answer in PAIR_KEYS if question in value and answer in value)
    if isinstance(value.get("label"), bool):
        raise RecordError('"label" says whether the reply is wanted, which is for: mmcli kto (mmcli-prefs)')
    prompt = read_prompt({**value, "system": None})
    if isinstance(value[answer_key], list):
        # As TRL does: what is asked is not trained, whoever said it.
        prompt = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
        return [*prompt, *read_messages(value[answer_key])]
    answer = assistant_message(_text(value, answer_key))
    if says_nothing(answer):
        raise RecordError(f'"{answer_key}" is empty')
    return [*prompt, answer]


def _with_system(messages: list[Message], system: Any) -> list[Message]:
    if not isinstance(system, str) or not system.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _text(value: Mapping[str, Any], key: str) -> str:
    if not isinstance(value.get(key), str):
        raise RecordError(f'"{key}" is not text')
    return str(value[key])


def _keys(value: Mapping[str, Any]) -> str:
    names = ", ".join(list(value)[:6])
    return f"the fields {names}" if names else "no fields"


def message_texts(messages: Sequence[Message]) -> list[str]:
    """The texts of messages: reasoning, content, and each tool call as JSON; none that is empty."""
    found: list[str] = []
    for message in split_reasoning(messages):
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
        found += [message.get("reasoning_content", ""), message["content"], *calls]
    return [text for text in found if text.strip()]


def _texts(chat: Chat) -> list[str]:
    return message_texts(chat.messages)


CHAT = RecordKind(
    name="chat",
    label="conversations",
    stage="sft",
    matches=is_chat,
    read=as_chat,
    texts=_texts,
    encode="mmcli.data.encode.encoders:encode_conversations",
)
