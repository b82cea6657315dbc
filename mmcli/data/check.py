"""What a data set amounts to for a stage: what is kept and left out, how long it is, what is in it twice."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mmcli.data.encode.cache import record_batches, refusal
from mmcli.data.encode.encoders import ENCODERS, EncodedRecord
from mmcli.data.formats.lines import reject
from mmcli.data.pack.mixture import token_targets
from mmcli.data.preview import TokenSequence, sequences_of
from mmcli.data.records.accounting import Intake, Tally
from mmcli.data.records.kinds import Rejected, kind_of
from mmcli.data.sources.sources import Sources
from mmcli.errors import UserError
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

LISTED = 100  # rejected records that a check lists; a quarantine file has all


@dataclass(frozen=True)
class DataCheck:
    """What a data set amounts to.

    Attributes:
        tally: records kept and rejected, with the reasons.
        kinds: readable records of each kind, the most frequent first.
        rejections: the first `LISTED` records left out.
        lengths: [N] int64, tokens of each sequence (a preference has two).
        trained: tokens that the model learns to write.
        text_bytes: UTF-8 bytes of the text behind the tokens.
        duplicates: kept records with the very tokens of an earlier one.
        mixture: (name, tokens that an epoch takes, tokens) of each part of the data; None: there are no weights.
        unusable: why a training refuses this data as a whole; None: it does not.
    """

    tally: Tally
    kinds: dict[str, int]
    rejections: list[Rejected]
    lengths: np.ndarray
    trained: int
    text_bytes: int
    duplicates: int
    mixture: list[tuple[str, int, int]] | None
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


class _Listing(Intake):
    """An intake that keeps the first rejected records."""

    def __init__(self, quarantine: Path | None) -> None:
        super().__init__(quarantine)
        self.items: list[Rejected] = []

    def reject(self, item: Rejected) -> None:
        if len(self.items) < LISTED:
            self.items.append(item)
        super().reject(item)


def check_data(
    sources: Sources, tokenizer: Tokenizer, *, quarantine: Path | None = None, report: Reporter | None = None
) -> DataCheck:
    """Read and encode everything as a training would: kept + rejected = all records.

    Args:
        quarantine: where the rejected records are written, if there are any.

    Raises:
        UserError: the tokenizer has no usable chat template where one is needed.
    """
    report, encode, total = report or Silent(), ENCODERS[sources.kind], sources.total
    kinds = Counter[str]()
    lengths, hashes = array("q"), array("Q")  # 8 bytes a value, however large the data is
    trained = text_bytes = 0
    part_tokens = [0] * len(sources.parts)
    intake = _Listing(quarantine)
    with intake:
        for part, batch, done in record_batches(sources, intake):
            kinds.update(kind_of(record.value) for record in batch)
            for record, result in zip(batch, encode(tokenizer, batch, {}), strict=True):
                reason = refusal(result)
                if not isinstance(result, EncodedRecord) or reason is not None:
                    raw = json.dumps(record.value, ensure_ascii=False)
                    intake.reject(reject(record.file, record.line, str(reason), raw))
                    continue
                intake.keep(record.file)
                sequences = list(sequences_of(result))
                lengths.extend(len(sequence.ids) for sequence in sequences)
                part_tokens[part] += sum(len(sequence.ids) for sequence in sequences)
                hashes.append(_hash(sequences))
                trained += sum(sum(sequence.trained) for sequence in sequences)
                text_bytes += result.text_bytes
            if total is None:
                report.progress("check", intake.tally.total, None, "records")
            elif done < total:  # the end is told once
                report.progress("check", done, total, "B")
    end, unit = (total, "B") if total is not None else (intake.tally.total, "records")
    report.progress("check", end, end, unit)
    unusable, mixture = _unusable(intake, sources), None
    if sources.mixture is not None and unusable is None:
        try:
            targets = token_targets(part_tokens, sources.mixture)
        except UserError as error:
            unusable = error
        else:
            names = [name for name, _ in sources.mixture]
            mixture = list(zip(names, targets, part_tokens, strict=True))
    order = {file: number for number, file in enumerate(intake.first_by_file)}
    return DataCheck(
        tally=intake.tally,
        kinds=dict(kinds.most_common()),
        rejections=sorted(intake.items, key=lambda item: (order[item.file], item.line)),
        lengths=np.array(lengths, dtype=np.int64),
        trained=trained,
        text_bytes=text_bytes,
        duplicates=len(hashes) - len(np.unique(np.array(hashes, dtype=np.uint64))),
        mixture=mixture,
        unusable=unusable,
    )


def _hash(sequences: list[TokenSequence]) -> int:
    digest = blake2b(digest_size=8)
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids), *sequence.ids], dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little")


def _unusable(intake: Intake, sources: Sources) -> UserError | None:
    try:
        intake.check(sources.named)
    except UserError as error:
        return error
    return None
