"""Data as the model sees it: records as tokens, packed rows, and tokens as people can read them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.data.encode.cache import TokenCache
from mmcli.data.encode.encoders import encode_records
from mmcli.data.pack.batches import Batch, evaluation_batches
from mmcli.data.pack.packing import Rows, pack_cache
from mmcli.data.pack.selection import Selection
from mmcli.data.record import EncodedRecord, Record
from mmcli.data.records.account import RecordAccount, Tally
from mmcli.data.records.preferences import PREFERENCE
from mmcli.data.sources.sources import Sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer

SIGNS = {"\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class TokenSequence:
    """Token ids [T], and [T] 1 where the model is trained to write the token, else 0."""

    ids: list[int]
    trained: list[int]


@dataclass(frozen=True)
class Example:
    """A record with its sequences: one, or for a preference two, the chosen and the rejected one."""

    record: Record
    sequences: tuple[TokenSequence, ...]


def read_examples(sources: Sources, tokenizer: Tokenizer, account: RecordAccount, **options: Any) -> Iterator[Example]:
    """Each record as a training on it would encode it, in order; those it would leave out go to `account`.

    Args:
        options: of the encoder: `train_on` for conversations.

    Raises:
        UserError: the tokenizer has no usable chat template where one is needed.
    """
    for batch in encode_records(sources, tokenizer, account, options=options, batch_records=1, workers=1):
        for record, encoded in batch.kept:
            yield Example(record, tuple(sequences_of(encoded)))


def sequences_of(record: EncodedRecord) -> Iterator[TokenSequence]:
    """The sequences of an encoded record."""
    masks = record.trained if record.trained is not None else [[True] * len(ids) for ids in record.ids]
    for ids, mask in zip(record.ids, masks, strict=True):
        yield TokenSequence(list(ids), [int(flag) for flag in mask])


@dataclass(frozen=True)
class PackedRow:
    """One row as the model reads it, [1, T] arrays, and (document, start, tokens) of each of its segments."""

    batch: Batch
    segments: list[tuple[int, int, int]]


@dataclass(frozen=True)
class PackedRows:
    """The first rows of some records, how all of them are packed, and what was left out of the records."""

    rows: list[PackedRow]
    packing: Rows
    tally: Tally


def read_rows(sources: Sources, tokenizer: Tokenizer, *, seq_len: int, most: int, limit: int) -> PackedRows:
    """The first `limit` rows that a training makes of the first `most` records.

    Raises:
        UserError: no usable record among them; pairs of preferences, which are not packed.
    """
    if sources.kind == PREFERENCE.name:
        raise UserError("preference pairs are not packed into rows", "leave --packed out")
    with tempfile.TemporaryDirectory(prefix="mmcli-", ignore_cleanup_errors=True) as folder:
        cache = TokenCache.build_or_open(Path(folder), sources.first(most), tokenizer)
        packing = pack_cache(cache, seq_len, selection=Selection.whole(cache).mixed(cache))
        batches = itertools.islice(evaluation_batches(cache, packing, micro_batch=1), limit)
        rows = [PackedRow(batch, packing.pieces(row)) for row, batch in enumerate(batches)]
        return PackedRows(rows, packing, cache.tally)


@dataclass(frozen=True)
class Piece:
    """Tokens that together give whole characters, as people see them: printable, bytes as `<E6>`.

    Most are one token; a character outside the vocabulary takes several.
    """

    text: str
    tokens: int
    trained: bool
    control: bool = False
    ends_line: bool = False


def pieces(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[int]) -> Iterator[Piece]:
    """The tokens of a sequence for people, control tokens spelled out."""
    held, tokens, flag = b"", 0, False  # the beginning of a character, and whether it is trained

    def broken() -> Iterator[Piece]:
        if tokens:
            yield Piece("".join(f"<{byte:02X}>" for byte in held), tokens, flag)

    for id, mark in zip(ids, trained, strict=True):
        control, raw = tokenizer.control_token(id), tokenizer.token_bytes(id)
        if control is not None or bool(mark) != flag or _decoded(held + raw) is None:
            yield from broken()
            held, tokens, flag = b"", 0, bool(mark)
        if control is not None:
            yield Piece(printable(control), 1, flag, control=True)
            continue
        held, tokens = held + raw, tokens + 1
        text = _decoded(held)
        if text != "":
            if text is None:
                yield from broken()
            else:
                yield Piece(printable(text), tokens, flag, ends_line=text.endswith("\n"))
            held, tokens = b"", 0
    yield from broken()


def _decoded(raw: bytes) -> str | None:
    """The text that bytes spell; "" where a character is not complete yet, None where they cannot become text."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return "" if error.reason == "unexpected end of data" else None


def printable(text: str) -> str:
    """`text` with signs for line ends and tabs; what could steer a terminal is spelled out."""
    return "".join(
        SIGNS.get(char) or (char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )
