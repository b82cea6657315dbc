"""The texts of records: what a tokenizer is trained on and measured with, the same that a training encodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mmcli.data.encode.encoders import Converted, RecordBatch, keep_records
from mmcli.data.record import Record, RecordError
from mmcli.data.records.account import RecordAccount
from mmcli.data.records.conversations import Chat
from mmcli.data.records.kinds import find_kind
from mmcli.data.sources.columns import check_columns, parse_columns
from mmcli.data.sources.sources import Sources, find_sources, of_any_kind, read_beginnings
from mmcli.text.template import TOOLS_TEXT

SAMPLE = 200_000  # characters of the data that are kept to measure a tokenizer on


class EvenSample:
    """Chooses which texts of some data to take, so that they are about `most` bytes in all.

    A text is taken while the share of `most` that was taken is not ahead of the share of the data that was read. So
    all texts are taken where they are fewer; else some at every place, the same in every run. Where the size of the
    data is not known before (a data set of the hub), the first `most` bytes are taken.
    """

    def __init__(self, total: float | None, most: float) -> None:
        """
        Args:
            total: bytes of the data's files, None if that is not known.
            most: bytes of UTF-8 text.
        """
        self._total, self._most = total, most
        self.taken = 0  # bytes
        self.skipped = 0  # texts

    def takes(self, text: str, read: float) -> bool:
        """True if this text, the next of the data, is taken; `read` counts the bytes of files read so far."""
        share = 1.0 if not self._total else read / self._total
        if self.taken >= self._most * share:
            self.skipped += 1
            return False
        self.taken += len(text.encode("utf-8", "surrogatepass"))
        return True


class Corpus:
    """The texts of all records of some data, read once, or about `most` bytes of them, taken evenly.

    Attributes:
        sources: the data.
        account: the records kept and rejected so far; all kept ones count, taken or not.
        taken: bytes of the texts that were taken; `skipped` counts the other texts.
        sample: the first `SAMPLE` characters of them.
    """

    def __init__(self, sources: Sequence[Sources], most: float = math.inf, *, template: bool = False) -> None:
        """
        Args:
            template: what the built-in chat template writes around the messages of a conversation is among the texts,
                though not in the sample.
        """
        self.sources, self._most, self._template = tuple(sources), most, template
        self.account = RecordAccount(strict=any(each.strict for each in sources))
        self.taken = self.skipped = 0
        self.sample = ""

    def __iter__(self) -> Iterator[str]:
        """
        Raises:
            UserError: no record that can be used; with `strict`, one that cannot.
        """
        sizes = [sources.total for sources in self.sources]
        known = sum(size for size in sizes if size is not None)
        for sources, size in zip(self.sources, sizes, strict=True):
            share = 1 / len(sizes) if size is None or not known else size / known
            even = EvenSample(size, self._most * share)
            for text, read, own in _texts(sources, self.account, self._template):
                if even.takes(text, read):
                    self.sample += text[: SAMPLE - len(self.sample)] if own else ""
                    yield text
            self.taken += even.taken
            self.skipped += even.skipped
        self.account.check(frozenset[str]().union(*(sources.named for sources in self.sources)))


Texts = tuple[list[str], list[str]]  # of a record: its own, and what the chat template writes around them


def _texts(sources: Sources, account: RecordAccount, template: bool) -> Iterator[tuple[str, int, bool]]:
    """Each text of the records that are kept, the bytes of files read so far, and whether it is the record's own."""
    kind = find_kind(sources.kind)

    def texts(record: Record) -> Texts | RecordError:
        try:
            read = kind.read(record)
            return kind.texts(read), _around(read) if template else []
        except RecordError as error:
            return error

    def convert(batches: Iterator[RecordBatch]) -> Converted[Texts]:
        return ((batch, [texts(record) for record in batch.records]) for batch in batches)

    for batch in keep_records(sources, account, convert, batch_records=1):  # so that a sample is even
        for _, (own, around) in batch.kept:
            for text in own:
                yield text, batch.bytes_read, True
            for text in around:
                yield text, batch.bytes_read, False


def _around(read: Any) -> list[str]:
    """What the built-in chat template writes of a conversation besides its messages: roles and tools."""
    if not isinstance(read, Chat):
        return []
    roles = [f"{message['role']}\n" for message in read.messages]
    if not read.tools:
        return roles
    return [*roles, *TOOLS_TEXT, *(json.dumps(tool, ensure_ascii=False) for tool in read.tools)]


def open_corpus(
    names: Sequence[str], columns: Sequence[str] = (), most: float = math.inf, *, template: bool = False
) -> Corpus:
    """The texts of what each of `names` names, each of the kind that it holds.

    Args:
        columns: see `open_sources`; each must be a field of some of the data.
        template: see `Corpus`.

    Raises:
        UserError: see `open_sources`; a weight was given.
    """
    pairs = parse_columns(columns)
    opened, records = [], []
    for name in names:
        sources = find_sources([name], columns)
        sources.refuse_weights("a tokenizer")
        beginnings = read_beginnings(sources)
        records += [record for each in beginnings for record in each.records]
        opened.append(of_any_kind(sources, beginnings))
    check_columns(pairs, records)
    return Corpus(opened, most, template=template)
