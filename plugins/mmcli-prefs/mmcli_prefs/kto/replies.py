"""The replies of a run, each beside its prompt with the reply of another record, from which the KL divergence of a
step is estimated.

Shapes: N replies, B of them in a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcli.api import (
    Batch,
    Batches,
    OpenedData,
    PairData,
    PairFit,
    Pairs,
    Rows,
    Selection,
    StageContext,
    Start,
    TokenBatch,
    TokenCache,
    TrainConfig,
    UserError,
    choose_micro_batch,
    make_batch,
    open_split,
    pair_rows,
)

OWN, MISMATCHED = 0, 1  # the rows of a reply: its own, and the one of another reply to its prompt
LENGTH_STEP = 64  # rows are as long as the longest of a micro-batch, rounded up


class Mismatched(TokenCache):
    """A cache with a second sequence for each of its own: sequence 2i is its i-th, sequence 2i + 1 the prompt of that
    with the reply of another record. All records form a circle in a random order; each lends its reply to the one
    before it. (Only what rows are made of is there.)
    """

    def __init__(self, cache: TokenCache, seed: int) -> None:
        """
        Raises:
            UserError: the cache has a single record.
        """
        self.cache = cache
        self.key, self.pad_id, self.masked, self.course = cache.key, cache.pad_id, True, None
        self.sequences_per_record = 2 * cache.sequences_per_record
        numbers_RS = np.arange(len(cache)).reshape(-1, cache.sequences_per_record)
        if len(numbers_RS) < 2:
            what = "there is a single record, and KTO estimates the KL divergence by replies to other prompts"
            raise UserError(what, "give two records or more, in the data of --val too")
        draws = np.random.Philox(key=[seed % 2**64, 0]).random_raw(len(numbers_RS))
        circle = numbers_RS[np.argsort(draws, kind="stable")]
        self.lender_N = np.empty(len(cache), dtype=np.int64)
        self.lender_N[circle] = np.roll(circle, -1, axis=0)
        self.prompt_N = np.array([int(cache.trained(i).argmax()) for i in range(len(cache))], dtype=np.int64)

    def __len__(self) -> int:
        return 2 * len(self.cache)

    def lengths_of(self, which_M: np.ndarray) -> np.ndarray:
        """[M] int64, tokens of these sequences."""
        of, side = np.divmod(which_M, 2)
        lender = self.lender_N[of]
        lent = self.prompt_N[of] + self.cache.lengths_of(lender) - self.prompt_N[lender]
        return np.where(side == OWN, self.cache.lengths_of(of), lent)

    def ids(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `TokenCache.ids`."""
        return self._joined(self.cache.ids, i)[start:stop]

    def trained(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See `TokenCache.trained`."""
        return self._joined(self.cache.trained, i)[start:stop]

    def _joined(self, read: Any, i: int) -> np.ndarray:
        of, side = divmod(i, 2)
        if side == OWN:
            whole: np.ndarray = read(of)
            return whole
        lender = int(self.lender_N[of])
        return np.concatenate([read(of, 0, int(self.prompt_N[of])), read(lender, int(self.prompt_N[lender]))])


@dataclass(frozen=True)
class ReplyBatch:
    """A micro-batch of replies.

    Attributes:
        reference_B: log-probability of each under the reference.
        good_B: bool.
        kl: the KL divergence of the whole step, a scalar.
    """

    rows: TokenBatch
    reference_B: Tensor
    good_B: Tensor
    kl: Tensor
    counts: Mapping[str, float]

    @property
    def tokens(self) -> int:
        """Tokens in it, padding not counted."""
        return self.rows.tokens

    def to(self, device: torch.device) -> ReplyBatch:
        """The same micro-batch on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("rows", "reference_B", "good_B", "kl")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Replies:
    """The replies of one part of the data.

    Attributes:
        pairs: of each reply its own row and the mismatched one, with the reference's log-probabilities of both.
        good_N: bool.
    """

    pairs: Pairs
    good_N: np.ndarray

    def batch(self, part: np.ndarray, kl: float) -> ReplyBatch:
        """The replies `part` of a step with this KL divergence, on the host."""
        rows = self.rows(part, OWN)
        counts = {"loss": float(len(part))} | {name: rows.counts[name] for name in rows.counts if name == "balance"}
        reference_B = torch.from_numpy(self.pairs.reference_N2[part, OWN])
        return ReplyBatch(rows, reference_B, torch.from_numpy(self.good_N[part]), torch.tensor(kl), counts)

    def rows(self, part: np.ndarray, side: int) -> TokenBatch:
        """The rows OWN or MISMATCHED of the replies `part`, on the host."""
        pairs = self.pairs
        pieces = np.array([pairs.rows.pieces(int(number))[side] for number in part], dtype=np.int64)
        length = min(-(-int(pieces[:, 2].max()) // LENGTH_STEP) * LENGTH_STEP, pairs.rows.seq_len)
        single = Rows(pieces[:, 0], pieces[:, 1], pieces[:, 2], np.arange(len(pieces) + 1), length)
        batch: Batch = make_batch(pairs.cache, single, range(len(pieces)))
        return TokenBatch.from_batch(batch, pairs.config, pin=pairs.pin)


@dataclass(frozen=True)
class ReplyData:
    """The replies of a run; `pairs` is the same as what a reference is computed for."""

    training: Replies
    held_out: Replies | None
    pairs: PairData


def open_replies(data: OpenedData, train: TrainConfig, start: Start, context: StageContext) -> ReplyData:
    """The replies to train on, and those held out: labelled ones, or both of each preference pair.

    Raises:
        UserError: the data cannot be used, no reply fits, or there is a single record.
    """
    seq_len = data.config.seq_len

    def fits(cache: TokenCache) -> np.ndarray:
        """[N] bool, replies of which a token is left to train on once they are cut."""
        return np.array([cache.trained(i, 1, seq_len + 1).any() for i in range(len(cache))])

    def usable(cache: TokenCache) -> np.ndarray:
        return np.asarray(fits(cache).reshape(-1, cache.sequences_per_record).all(axis=1))

    cache, kept, val_cache, held = open_split(data, train.seed, start.tokenizer, context, usable=usable)
    micro_batch = choose_micro_batch(train, start.model.config, seq_len, start.accelerator, context)

    def part(cache: TokenCache, selection: Selection) -> Replies:
        both, fit_N = Mismatched(cache, train.seed), fits(cache)
        if not fit_N[selection.documents].any():
            raise UserError(f"no reply fits into --seq-len {seq_len:,}", "give a longer --seq-len")
        numbers = np.stack([2 * selection.documents, 2 * selection.documents + 1], axis=1).ravel()
        rows = pair_rows(both, Selection.whole(both, numbers), seq_len, PairFit(fit_N, np.zeros_like(fit_N)))
        of = rows.piece_doc[::2] // 2
        good_N = cache.labels[of] > 0 if cache.labels is not None else of % 2 == 0
        table = np.zeros((len(rows), 2), dtype=np.float32)
        pairs = Pairs(both, rows, table, start.model.config, micro_batch, start.accelerator.pins_memory, "loss")
        return Replies(pairs, good_N)

    training = part(cache, kept)
    held_out = part(val_cache, held) if len(held) else None
    context.report.note(_describe(training, held_out))
    rows = training.pairs.rows
    steps = Batches(
        training.pairs.cache, rows, batch_size=train.batch_size, micro_batch=micro_batch.size, seed=train.seed
    )
    return ReplyData(
        training, held_out, PairData(training.pairs, held_out.pairs if held_out is not None else None, steps)
    )


def _describe(training: Replies, held_out: Replies | None) -> str:
    rows, good = training.pairs.rows, int(training.good_N.sum())
    line = f"{len(rows):,} replies: {good:,} good, {len(rows) - good:,} bad"
    if rows.dropped:
        line += f"; {rows.dropped:,} too long and left out"
    return line + (f"; held out: {len(held_out.pairs):,}" if held_out is not None else "")
