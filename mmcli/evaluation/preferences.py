"""How often a model finds the better of two replies the likelier one.

Shapes: P pairs, 2P sequences (chosen, rejected, chosen, ...) of T tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.data import demo
from mmcli.data.encode.encoders import encode_records
from mmcli.data.pack.batches import NO_LABEL, PADDING, Batch
from mmcli.data.record import EncodedRecord
from mmcli.data.records.account import RecordAccount
from mmcli.data.sources.source import DEMO
from mmcli.data.sources.sources import open_any, open_sources
from mmcli.errors import UserError
from mmcli.evaluation.engines import check_vocabulary
from mmcli.evaluation.loss import batch_nats
from mmcli.evaluation.scores import Score
from mmcli.evaluation.suites import PREFERENCES
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

KINDS = ("text", "chat", "preference")  # that can be measured
TOGETHER = 256  # pairs read before they are sorted by length into batches


@dataclass(frozen=True)
class PreferenceAccuracy:
    """Pairs whose chosen reply has the higher log-probability under a model; an equal one is not higher."""

    by_sum: Score  # log-probability of the whole reply
    by_token: Score  # the same divided by the tokens of the reply, so that a short reply has no advantage
    margin: float  # mean log p(chosen) - log p(rejected) of the whole replies, in nats
    too_long: int  # pairs that do not fit into the context: left out
    kept: int  # records
    rejected: int
    data: tuple[str, ...] = ()  # as it was named
    version: str = ""  # of the built-in pairs

    def to_json(self) -> dict[str, Any]:
        """The figures, as `mmcli eval --json` prints them."""
        return {
            "suite": PREFERENCES,
            "version": self.version,
            "data": list(self.data),
            "score": self.by_sum.share,
            "interval": list(self.by_sum.interval),
            "pairs": self.by_sum.total,
            "by_sum": self.by_sum.to_json(),
            "by_token": self.by_token.to_json(),
            "margin": self.margin,
            "too_long": self.too_long,
            "kept": self.kept,
            "rejected": self.rejected,
        }


def measure_preferences(
    ref: ModelRef,
    data: Sequence[str] = (DEMO,),
    *,
    columns: Sequence[str] = (),
    device: str = "auto",
    report: Reporter | None = None,
) -> PreferenceAccuracy:
    """The share of preference pairs whose chosen reply is likelier than the rejected one.

    Replies stand in the chat template, as in `mmcli dpo`, and end with the token that ends a turn.

    Args:
        data: files, folders or names as `--data` takes them; `demo` alone: the held-out pairs of the built-in corpus.
        columns: FIELD=COLUMN, what the data calls a field.

    Raises:
        UserError: data that cannot be used, no pair that fits into the context, no such device, or a tokenizer of
            another model or without a chat template.
    """
    from mmcli.model.device import MICRO_BATCH_TOKENS, choose_device
    from mmcli.model.formats.hf_folder import load_model

    report, built_in = report or Silent(), list(data) == [DEMO]
    if DEMO in data and not built_in:
        raise UserError("demo stands for the held-out pairs, and takes no others beside it", "measure the others alone")
    tokenizer, max_seq_len = Tokenizer.load(ref.path), read_model_config(ref.path).max_seq_len
    with tempfile.TemporaryDirectory(prefix="mmcli-", ignore_cleanup_errors=True) as folder, RecordAccount() as account:
        names = [_held_out_pairs(Path(folder))] if built_in else data
        sources = open_sources(names, kind="preference", columns=columns)
        sources.refuse_weights("the accuracy of preferences")
        what = "the held-out pairs of the built-in corpus" if built_in else sources.describe
        report.note(f"{ref.label}: is the chosen reply likelier than the rejected one? {what}")
        place = choose_device(device)
        model = load_model(ref.path, device=place).eval()
        check_vocabulary(ref, tokenizer, model.config.vocab_size)
        most = MICRO_BATCH_TOKENS.get(place.type, 1024)
        logps: list[np.ndarray] = []
        too_long = 0
        for batch in encode_records(sources, tokenizer, account, batch_records=TOGETHER, report=report, task="pairs"):
            pairs = [pair for _, pair in batch.kept]
            fits = [pair for pair in pairs if max(map(len, pair.ids)) <= max_seq_len + 1]
            too_long += len(pairs) - len(fits)
            logps += [_logps(model, each) for each in _pair_batches(fits, most, tokenizer.pad_id)]
    for line in account.tally.lines():
        report.warn(line)
    if not logps:
        what = f"no preference pair of the data fits into the context of {max_seq_len:,} tokens"
        raise UserError(
            what if account.tally.kept else "no preference pair of the data can be used", "give other --data"
        )
    if too_long:
        report.warn(f"{too_long:,} pairs do not fit into the context of {max_seq_len:,} tokens: left out")
    sums_P2, means_P2 = np.moveaxis(np.concatenate(logps), 1, 0)
    return PreferenceAccuracy(
        by_sum=_preferred(sums_P2),
        by_token=_preferred(means_P2),
        margin=float((sums_P2[:, 0] - sums_P2[:, 1]).mean()),
        too_long=too_long,
        kept=account.tally.kept,
        rejected=account.tally.rejected,
        data=tuple(data),
        version=demo.CORPUS_VERSION if built_in else "",
    )


def split_pairs(
    data: Sequence[str], *, built_in: bool = False, columns: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """(what holds preference pairs, what holds text or conversations) of the things that `--data` names.

    Args:
        built_in: `demo` means the held-out pairs, and not the text of the built-in corpus.
        columns: see `measure_preferences`; with them, all of the data is of one kind.

    Raises:
        UserError: something is of no kind that can be measured.
    """
    parts = [list(data)] if columns else [[name] for name in data]
    pairs = [
        (built_in and part == [DEMO]) or open_any(part, KINDS, columns=columns).kind == "preference" for part in parts
    ]
    chosen = [
        [name for part, is_pairs in zip(parts, pairs, strict=True) if is_pairs is wanted for name in part]
        for wanted in (True, False)
    ]
    return chosen[0], chosen[1]


def _held_out_pairs(folder: Path) -> str:
    """The held-out pairs of the built-in corpus, as a file."""
    path = folder / "held-out.jsonl"
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in demo.preferences(held_out=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def _preferred(values_P2: np.ndarray) -> Score:
    return Score(int((values_P2[:, 0] > values_P2[:, 1]).sum()), len(values_P2))


def _pair_batches(pairs: Sequence[EncodedRecord], most: int, pad_id: int) -> Iterator[Batch]:
    """The pairs by length, as batches of about `most` tokens; row 2i is the chosen side of a pair, 2i + 1 the other."""
    lengths = [max(map(len, pair.ids)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda number: lengths[number])
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and 2 * (end + 1 - start) * lengths[order[end]] <= most:
            end += 1
        yield _batch([pairs[number] for number in order[start:end]], pad_id)
        start = end


def _batch(pairs: Sequence[EncodedRecord], pad_id: int) -> Batch:
    """Both sides of some pairs, each in a row of its own."""
    shape = (2 * len(pairs), max(len(ids) for pair in pairs for ids in pair.ids) - 1)
    ids_BT, labels_BT = np.full(shape, pad_id, dtype=np.int64), np.full(shape, NO_LABEL, dtype=np.int64)
    positions_BT, segments_BT = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
    for number, pair in enumerate(pairs):
        for side, sequence in enumerate(pair.ids):
            ids = np.asarray(sequence, dtype=np.int64)  # other processes give unsigned ones
            row, length = 2 * number + side, len(ids) - 1
            ids_BT[row, :length] = ids[:-1]
            trained = (
                np.ones(length, dtype=bool) if pair.trained is None else np.asarray(pair.trained[side][1:], dtype=bool)
            )
            labels_BT[row, :length] = np.where(trained, ids[1:], NO_LABEL)
            positions_BT[row, :length] = np.arange(length)
            segments_BT[row, :length] = 0
    return Batch(ids_BT, labels_BT, positions_BT, segments_BT)


def _logps(model: Any, batch: Batch) -> np.ndarray:
    """[P, 2, 2]: of each pair the sum and the mean log-probability, each of the chosen and the rejected reply."""
    counts_B = (batch.labels_BT != NO_LABEL).sum(axis=1)
    sums_B = -batch_nats(model, batch).sum(axis=1)
    both_B2 = np.stack([sums_B, sums_B / np.maximum(counts_B, 1)], axis=1)
    return both_B2.reshape(-1, 2, 2).swapaxes(1, 2)
