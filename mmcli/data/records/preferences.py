"""Preference pairs: a prompt with a better and a worse reply.

Read shapes: `{chosen, rejected}` as whole conversations; `{prompt, chosen, rejected}` as text or messages;
`{conversations, chosen, rejected}`; `{instruction, input, chosen, rejected}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcli.data.record import Record, RecordError
from mmcli.data.records.conversations import (
    Message,
    assistant_message,
    check_meaning,
    message_texts,
    read_chat,
    read_messages,
    read_prompt,
    read_tools,
    says_nothing,
)
from mmcli.data.records.kinds import PAIR_KEYS, RecordKind, has_turns, is_preference


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse continuation, each one or more messages that begin with the assistant."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None


def as_preference(record: Record) -> Preference:
    """The prompt and the two continuations of a preference record.

    Raises:
        RecordError: it is of another kind, a part is not understood, or both continuations are the same.
    """
    PREFERENCE.check(record)
    value = record.value
    check_meaning(value)
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
    if says_nothing(message):
        raise RecordError(f'"{key}" is empty')
    return [message]


def _texts(pair: Preference) -> list[str]:
    return message_texts([*pair.prompt, *pair.chosen, *pair.rejected])


PREFERENCE = RecordKind(
    name="preference",
    label="preference pairs (chosen, rejected)",
    stage="dpo",
    matches=is_preference,
    read=as_preference,
    texts=_texts,
    encode="mmcli.data.encode.encoders:encode_preferences",
)
