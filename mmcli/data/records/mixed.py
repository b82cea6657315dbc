"""Plain text and conversations in one data set: mid-training and instruction pretraining, or SFT that keeps some text.

A record is what its own fields say: text is trained whole, of a conversation what the assistant writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcli.data.record import Record
from mmcli.data.records.conversations import CHAT, Chat, as_chat
from mmcli.data.records.kinds import TEXT, RecordKind, as_text, is_chat, is_text


def is_mixed(value: Mapping[str, Any]) -> bool:
    return is_text(value) or is_chat(value)


def as_mixed(record: Record) -> str | Chat:
    """The text or the conversation of a record.

    Raises:
        RecordError: it is neither, or cannot be used.
    """
    MIXED.check(record)
    return as_chat(record) if is_chat(record.value) else as_text(record)


def _texts(read: str | Chat) -> list[str]:
    return TEXT.texts(read) if isinstance(read, str) else CHAT.texts(read)


MIXED = RecordKind(
    name="mixed",
    label="plain text or conversations",
    stage="pretrain",
    matches=is_mixed,
    read=as_mixed,
    texts=_texts,
    encode="mmcli.data.encode.encoders:encode_mixed",
)
