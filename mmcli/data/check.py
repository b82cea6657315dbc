"""Validation of a data set for a stage: records kept and rejected, lengths, exact duplicates."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mmcli.data.encode.encoders import Converted, KeptBatch, RecordBatch, encode_records, keep_records
from mmcli.data.pack.selection import token_targets
from mmcli.data.preview import TokenSequence, sequences_of
from mmcli.data.record import EncodedRecord, Record, RecordError, Rejected
from mmcli.data.records.account import RecordAccount, Tally
from mmcli.data.records.kinds import find_kind, kind_of
from mmcli.data.sources.sources import Sources
from mmcli.errors import UserError
from mmcli.stage import Reporter
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataCheck:
    """The findings about a data set.

    Attributes:
        tally: records kept and rejected, with the reasons.
        kinds: readable records of each kind, the most frequent first.
        rejections: the first rejected records (see `RecordAccount.rejections`), by place.
        tokenized: False without a tokenizer: then there are no lengths, trained tokens and mixture.
        lengths: [N] int64, tokens of each sequence (a preference has two).
        trained: tokens that count towards the loss.
        text_bytes: UTF-8 bytes of the text behind the tokens.
        duplicates: kept records with exactly the tokens of an earlier one; without a tokenizer, its texts.
        mixture: (name, tokens that an epoch takes, tokens) of each source; None: there are no weights.
        course: (share at the first step, share at the last) of each source; None: no share changes.
        unusable: why a training refuses this data as a whole; None: it does not.
    """

    tally: Tally
    kinds: dict[str, int]
    rejections: list[Rejected]
    tokenized: bool
    lengths: np.ndarray
    trained: int
    text_bytes: int
    duplicates: int
    mixture: list[tuple[str, int, int]] | None
    course: tuple[tuple[float, float], ...] | None
    unusable: UserError | None

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def histogram(self) -> list[tuple[int, int, int]]:
        """(shortest, longest, sequences) for lengths 1, 2-3, 4-7, 8-15, ..., from the shortest to the longest."""
        if not len(self.lengths):
            return []
        counts = np.bincount(np.frexp(self.lengths.astype(np.float64))[1] - 1)
        first = int(np.flatnonzero(counts)[0])
        return [(2**i, 2 ** (i + 1) - 1, int(counts[i])) for i in range(first, len(counts))]


def check_data(
    sources: Sources, tokenizer: Tokenizer | None, *, quarantine: Path | None = None, report: Reporter | None = None
) -> DataCheck:
    """Read and encode everything as a training would: kept + rejected = all records.

    Args:
        tokenizer: None: records are read and counted, not encoded; what only a chat template would reject is kept.
        quarantine: where the rejected records are written, if there are any.

    Raises:
        UserError: the tokenizer has no usable chat template where one is needed.
    """
    kinds, needed = Counter[str](), None if sources.kind == "mixed" else sources.kind
    lengths, hashes = array("q"), array("Q")  # 8 bytes a value, however large the data is
    trained = text_bytes = 0
    source_tokens = [0] * len(sources.members)
    with RecordAccount(quarantine) as account:
        if tokenizer is None:
            for read in keep_records(sources, account, _texts_of(sources.kind), report=report, task="check"):
                kinds.update(kind_of(record.value, needed) for record in read.records)
                for _, texts in read.kept:
                    hashes.append(_hash_texts(texts))
                    text_bytes += sum(len(text.encode()) for text in texts)
            encoded_batches: Iterator[KeptBatch[EncodedRecord]] = iter(())
        else:
            encoded_batches = encode_records(sources, tokenizer, account, report=report, task="check")
        for batch in encoded_batches:
            kinds.update(kind_of(record.value, needed) for record in batch.records)
            for _, encoded in batch.kept:
                sequences = list(sequences_of(encoded))
                lengths.extend(len(sequence.ids) for sequence in sequences)
                source_tokens[batch.source] += sum(len(sequence.ids) for sequence in sequences)
                hashes.append(_hash(sequences))
                trained += sum(sum(sequence.trained) for sequence in sequences)
                text_bytes += encoded.text_bytes
    unusable, mixture = _unusable(account, sources), None
    if sources.mixture is not None and unusable is None and tokenizer is not None:
        try:
            targets = token_targets(source_tokens, sources.mixture)
        except UserError as error:
            unusable = error
        else:
            names = [name for name, _ in sources.mixture]
            mixture = list(zip(names, targets, source_tokens, strict=True))
    order = {file: number for number, file in enumerate(account.first_by_file)}
    return DataCheck(
        tally=account.tally,
        kinds=dict(kinds.most_common()),
        rejections=sorted(account.rejections, key=lambda item: (order[item.file], item.line)),
        tokenized=tokenizer is not None,
        lengths=np.array(lengths, dtype=np.int64),
        trained=trained,
        text_bytes=text_bytes,
        duplicates=len(hashes) - len(np.unique(np.array(hashes, dtype=np.uint64))),
        mixture=mixture,
        course=sources.course,
        unusable=unusable,
    )


def _texts_of(kind: str) -> Callable[[Iterator[RecordBatch]], Converted[list[str]]]:
    """Batches with the texts of each record, or the reason why it cannot be used."""
    found = find_kind(kind)

    def texts(record: Record) -> list[str] | RecordError:
        try:
            return found.texts(found.read(record))
        except RecordError as error:
            return error

    return lambda batches: ((batch, [texts(record) for record in batch.records]) for batch in batches)


def _hash_texts(texts: Sequence[str]) -> int:
    digest = blake2b(digest_size=8)
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def _hash(sequences: list[TokenSequence]) -> int:
    digest = blake2b(digest_size=8)
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids), *sequence.ids], dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little")


def _unusable(account: RecordAccount, sources: Sources) -> UserError | None:
    try:
        account.check(sources.named)
    except UserError as error:
        return error
    return None
