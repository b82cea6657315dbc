"""Records: what a line or an element of a data file holds, and the kinds that training stages need.

| kind | shapes |
|---|---|
| text | `{"text"}`, `{"content"}`, `{"paragraphs": [...]}`; a document of a text file is `{"text"}` too |
| chat | messages, or a question with its answer: see `conversations.py` |
| preference | `{chosen, rejected}` as whole conversations; `{prompt, chosen, rejected}` as text or messages; |
|  | `{conversations, chosen, rejected}` and `{instruction, input, chosen, rejected}` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmcli.data.records.conversations import (
    PAIR_KEYS,
    Chat,
    Message,
    RecordError,
    assistant_message,
    has_pair,
    has_turns,
    read_chat,
    read_messages,
    read_prompt,
    read_tools,
)

Kind = Literal["text", "chat", "preference"]
KIND_NAMES = {
    "text": 'plain text ({"text"})',
    "chat": "conversations",
    "preference": "preference pairs (chosen, rejected)",
    "unknown": "records of no known kind",
}
KIND_STAGES = {"text": "mmcli pretrain", "chat": "mmcli sft", "preference": "mmcli dpo"}
TEXT_KEYS = ("text", "content", "paragraphs")


@dataclass(frozen=True)
class Record:
    """One readable record; `line` (from 1) is where it starts in `file`."""

    file: str
    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """One record that is left out, and why; `raw` holds its bytes (at most the first 64 KiB)."""

    file: str
    line: int
    reason: str
    raw: bytes


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse continuation, each one or more messages that begin with the assistant."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None


def kind_of(value: Mapping[str, Any]) -> str:
    """`text`, `chat`, `preference` or `unknown`, by the names of the fields."""
    if "chosen" in value and "rejected" in value:
        return "preference"
    if has_turns(value) or has_pair(value):
        return "chat"
    if any(key in value for key in TEXT_KEYS):
        return "text"
    return "unknown"


def as_text(record: Record) -> str:
    """The text of a text record.

    Raises:
        RecordError: it is of another kind, or its text is empty or not text.
    """
    _need(record, "text")
    key = next(key for key in TEXT_KEYS if key in record.value)
    text = record.value[key]
    if key == "paragraphs" and isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        raise RecordError(f'"{key}" is not text')
    if not text.strip():
        raise RecordError(f'"{key}" is empty')
    return text


def as_chat(record: Record) -> Chat:
    """The conversation of a chat record.

    Raises:
        RecordError: it is of another kind, a turn is not understood, or no assistant message is in it.
    """
    _need(record, "chat")
    chat = read_chat(record.value)
    if not any(message["role"] == "assistant" for message in chat.messages):
        raise RecordError("no assistant message: there is nothing to learn from")
    return chat


def as_preference(record: Record) -> Preference:
    """The prompt and the two continuations of a preference record.

    Raises:
        RecordError: it is of another kind, a part is not understood, or both continuations are the same.
    """
    _need(record, "preference")
    value = record.value
    tools = read_tools(value)
    chosen, rejected = _side(value, "chosen"), _side(value, "rejected")
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        prompt = _prompt(value)
    else:  # whole conversations: what they share is the prompt
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        if chosen == rejected:
            raise RecordError("chosen and rejected are the same")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise RecordError("chosen and rejected share no prompt")
    if not chosen or not rejected:
        raise RecordError("one of chosen and rejected has no reply of its own")
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise RecordError("chosen and rejected differ before the reply")
    if chosen == rejected:
        raise RecordError("chosen and rejected are the same")
    return Preference(prompt, chosen, rejected, tools)


def _prompt(value: Mapping[str, Any]) -> list[Message]:
    if has_turns(value):
        return read_chat(value).messages
    if any(question in value for question, _ in PAIR_KEYS):
        return read_prompt(value)
    raise RecordError("no prompt for chosen and rejected")


def _side(value: Mapping[str, Any], key: str) -> list[Message]:
    side = value[key]
    if isinstance(side, Mapping):
        return read_messages([side])
    if isinstance(side, list):
        return read_messages(side)
    if not isinstance(side, str):
        raise RecordError(f'"{key}" is neither text nor messages')
    message = assistant_message(side)
    if not message["content"].strip():
        raise RecordError(f'"{key}" is empty')
    return [message]


def _need(record: Record, kind: Kind) -> None:
    found = kind_of(record.value)
    if found == kind:
        return
    if found == "unknown":
        names = ", ".join(list(record.value)[:6]) or "none"
        raise RecordError(f"a record of no known kind: its fields are {names}")
    raise RecordError(f"a {found} record where a {kind} record is needed")
