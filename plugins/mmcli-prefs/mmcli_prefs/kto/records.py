"""Replies with a label, as records: `{prompt, completion, label}`, or any conversation with a `label` beside it.
No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmcli.api import EncodedRecord, Record, RecordError, RecordKind, as_chat, encode_conversations, is_chat

if TYPE_CHECKING:
    from mmcli.api import Tokenizer


@dataclass(frozen=True)
class LabelledReply:
    """A conversation and whether its last reply is a good one."""

    chat: Record  # the conversation without the label
    texts: Sequence[str]
    good: bool


def is_labelled(value: Mapping[str, Any]) -> bool:
    """True of a conversation with a label that says yes or no."""
    return isinstance(value.get("label"), bool | int) and value["label"] in (0, 1) and is_chat(value)


def as_labelled(record: Record) -> LabelledReply:
    """The conversation and its label.

    Raises:
        RecordError: it is of another kind, a part is not understood, or it does not end with a reply.
    """
    UNPAIRED.check(record)
    value = {name: each for name, each in record.value.items() if name != "label"}
    chat = replace(record, value=value)
    messages = as_chat(chat).messages
    if messages[-1]["role"] != "assistant":
        raise RecordError("it does not end with a reply")
    return LabelledReply(chat, [str(message["content"]) for message in messages], bool(record.value["label"]))


def encode_labelled(
    tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
) -> list[EncodedRecord | RecordError]:
    """Each conversation through the chat template, its last reply trained; the label is 1 or 0.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    results: list[EncodedRecord | RecordError] = []
    for record in records:
        try:
            found = as_labelled(record)
        except RecordError as error:
            results.append(error)
            continue
        [encoded] = encode_conversations(tokenizer, [found.chat], {"train_on": "last"})
        label = float(found.good)
        results.append(replace(encoded, label=label) if isinstance(encoded, EncodedRecord) else encoded)
    return results


def _texts(found: LabelledReply) -> list[str]:
    return [text for text in found.texts if text.strip()]


UNPAIRED = RecordKind(
    name="unpaired",
    label="labelled replies (prompt, completion, label)",
    stage="kto",
    matches=is_labelled,
    read=as_labelled,
    texts=_texts,
    encode="mmcli_prefs.kto.records:encode_labelled",
)
