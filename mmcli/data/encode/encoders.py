"""Records to token ids: what each kind of record becomes. A record is one sequence, a preference two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.data.records.conversations import Message, RecordError
from mmcli.data.records.kinds import Preference, Record, as_chat, as_preference, as_text
from mmcli.errors import UserError
from mmcli.text.chat import Encoded, encode_chat
from mmcli.text.chat_format import chat_format
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedRecord:
    """The sequences of one record.

    `ids`: one list of token ids a sequence. `trained`: for each the same number of flags, True where the token is one
    that the model learns to write; None where it learns all of them. `text_bytes`: UTF-8 bytes of the record's text.
    """

    ids: Sequence[Sequence[int]]
    trained: Sequence[Sequence[bool]] | None
    text_bytes: int


Encode = Callable[[Tokenizer, Sequence[Record], Mapping[str, Any]], list[EncodedRecord | RecordError]]
"""(tokenizer, records, options) -> one result a record, in order; a record that cannot be used gives its error."""


def encode_documents(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Text records as bos + text + eos, the texts of a call encoded together over the machine's cores."""
    results: list[EncodedRecord | RecordError] = []
    texts: dict[int, str] = {}
    for index, record in enumerate(records):
        try:
            texts[index] = as_text(record)
        except RecordError as error:
            results.append(error)
        else:
            results.append(RecordError("no token in its text"))
    for (index, text), ids in zip(texts.items(), tokenizer.encode_texts(list(texts.values())), strict=True):
        if ids:
            results[index] = EncodedRecord([tokenizer.frame(ids)], None, len(text.encode()))
    return results


def encode_conversations(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Chat records through the chat template; only what the assistant writes is trained.

    Args:
        options: `train_on`: "all" replies of a conversation (the default) or the "last" one. `train_reasoning`:
            whether the reasoning before a reply is trained too (the default).

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    chat_format(tokenizer)  # a bad template is one error, not one for each record
    train_on, train_reasoning = options.get("train_on", "all"), options.get("train_reasoning", True)

    def encode(record: Record) -> EncodedRecord:
        chat = as_chat(record)
        encoded = encode_chat(
            tokenizer, chat.messages, tools=chat.tools, train_on=train_on, train_reasoning=train_reasoning
        )
        return EncodedRecord([encoded.ids], [encoded.trained], _text_bytes(chat.messages))

    return [_attempt(encode, record) for record in records]


def encode_preferences(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Preference records as two sequences, prompt + chosen and prompt + rejected; the replies are trained.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    chat_format(tokenizer)

    def encode(record: Record) -> EncodedRecord:
        pair = as_preference(record)
        sides = [_continuation(tokenizer, pair, side) for side in (pair.chosen, pair.rejected)]
        size = _text_bytes([*pair.prompt, *pair.chosen, *pair.prompt, *pair.rejected])
        return EncodedRecord([side.ids for side in sides], [side.trained for side in sides], size)

    return [_attempt(encode, record) for record in records]


def _continuation(tokenizer: Tokenizer, pair: Preference, messages: list[Message]) -> Encoded:
    """Prompt and continuation as one sequence, trained on the continuation alone."""
    whole = [*pair.prompt, *messages]
    if len(messages) == 1:
        return encode_chat(tokenizer, whole, tools=pair.tools, train_on="last")
    encoded = encode_chat(tokenizer, whole, tools=pair.tools)
    prompt = encode_chat(tokenizer, pair.prompt, tools=pair.tools, add_generation_prompt=True).ids
    if encoded.ids[: len(prompt)] != prompt:
        raise RecordError("the chat template writes the prompt otherwise where a reply follows")
    return Encoded(encoded.ids, [False] * len(prompt) + encoded.trained[len(prompt) :])


def _attempt(encode: Callable[[Record], EncodedRecord], record: Record) -> EncodedRecord | RecordError:
    try:
        return encode(record)
    except RecordError as error:
        return error
    except UserError as error:
        return RecordError(f"the chat template does not take it: {error.what}")


def _text_bytes(messages: Sequence[Message]) -> int:
    return sum(len((message.get("reasoning_content", "") + message["content"]).encode()) for message in messages)


ENCODERS: dict[str, Encode] = {"text": encode_documents, "chat": encode_conversations, "preference": encode_preferences}
