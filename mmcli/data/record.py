"""A record on its way: as it was read, rejected with a reason, or encoded to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_RAW = 64 * 2**10  # bytes of a rejected record that are kept


class RecordError(ValueError):
    """A record that cannot be used. The text before the first `: ` groups reasons, what follows is detail."""


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
class EncodedRecord:
    """The sequences of one record.

    Attributes:
        ids: one list of token ids a sequence.
        trained: the loss mask, for each sequence the same number of flags: True where the model is trained to write
            the token; None where it is trained to write all of them.
        text_bytes: UTF-8 bytes of the record's text.
        label: a number that the record gives its sequences, such as 1 for a good reply; None for all records of a kind
            that has none.
    """

    ids: Sequence[Sequence[int]]
    trained: Sequence[Sequence[bool]] | None
    text_bytes: int
    label: float | None = None


def reject(file: str, line: int, reason: str, text: str = "") -> Rejected:
    """A rejected line or record, its raw bytes bounded."""
    return Rejected(file, line, reason, to_bytes(text[:MAX_RAW])[:MAX_RAW])


def to_bytes(text: str) -> bytes:
    """The bytes that `text` was read from (UTF-8), lone surrogates included."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
