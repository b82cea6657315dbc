"""The loss of a model on texts or conversations that a person names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batch, evaluation_batches
from mmcli.data.pack.packing import Rows, pack_cache
from mmcli.data.pack.selection import Selection
from mmcli.data.sources.sources import open_any
from mmcli.errors import UserError
from mmcli.evaluation.engines import check_vocabulary
from mmcli.evaluation.loss import TextLoss, model_losses, sum_losses
from mmcli.generate.conversation import is_chat_model
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

SEQ_LEN = 2048  # longest window of a model that does not say how long its rows were


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of a model on data, and how the data was read."""

    loss: TextLoss
    kind: str  # "text": every token counts; "chat": the assistant's tokens only
    seq_len: int  # tokens of a window, at most
    kept: int  # records
    rejected: int
    data: tuple[str, ...] = ()  # as it was named

    def to_json(self) -> dict[str, Any]:
        """The figures, as `mmcli eval --json` prints them."""
        return {
            "data": list(self.data),
            "kind": self.kind,
            "seq_len": self.seq_len,
            "kept": self.kept,
            "rejected": self.rejected,
            "loss": self.loss.loss,
            "perplexity": self.loss.perplexity,
            "bits_per_byte": self.loss.bits_per_byte,
            "tokens": self.loss.tokens,
            "bytes": self.loss.bytes,
        }


def measure_loss(
    ref: ModelRef,
    data: Sequence[str],
    *,
    columns: Sequence[str] = (),
    seq_len: int | None = None,
    device: str = "auto",
    report: Reporter | None = None,
) -> HeldOutLoss:
    """The loss of texts, or of the assistant's turns in conversations.

    Args:
        data: files, folders or names as `--data` takes them.
        columns: FIELD=COLUMN, what the data calls a field.
        seq_len: window for longer texts; None: the length of the rows that the model was trained on.

    Raises:
        UserError: data that cannot be used, a window that does not fit the model, no such device, or a tokenizer of
            another model.
    """
    from mmcli.model.device import choose_device
    from mmcli.model.formats.hf_folder import load_model

    report = report or Silent()
    tokenizer = Tokenizer.load(ref.path)
    chat = is_chat_model(ref.path, tokenizer, stage=ref.stage)
    sources = open_any(data, ("chat", "text") if chat else ("text", "chat"), columns=columns)
    sources.refuse_weights("the loss of a text")
    window = _window(ref, seq_len)
    what = "the assistant's tokens only" if sources.kind == "chat" else "every token"
    report.note(f"{ref.label}: the loss of {sources.describe}, {what}, in windows of {window:,} tokens")
    with tempfile.TemporaryDirectory(prefix="mmcli-", ignore_cleanup_errors=True) as folder:
        cache = TokenCache.build_or_open(Path(folder), sources, tokenizer, report=report)
        for line in cache.tally.lines():
            report.warn(line)
        place = choose_device(device)
        model = load_model(ref.path, device=place).eval()
        check_vocabulary(ref, tokenizer, model.config.vocab_size)
        rows = evaluation_rows(cache, window)
        batches = evaluation_batches(cache, rows, _micro_batch(place.type, rows.seq_len))
        losses = model_losses(model, _with_progress(batches, rows.tokens, report))
        loss = sum_losses(losses, tokenizer.byte_lengths())
        return HeldOutLoss(loss, sources.kind, window, cache.tally.kept, cache.tally.rejected, tuple(data))


def _window(ref: ModelRef, seq_len: int | None) -> int:
    """Tokens that are read together, at most: as asked, else as the model was trained.

    Raises:
        UserError: longer than the model's context, or too short to predict anything.
    """
    longest = read_model_config(ref.path).max_seq_len
    if seq_len is None:
        trained = ref.run.read_config().get("data", {}).get("seq_len") if ref.run else None
        return min(int(trained or SEQ_LEN), longest)
    if seq_len < 2:
        raise UserError(f"--seq-len {seq_len} is below 2", "give 2 or more, such as 512")
    if seq_len > longest:
        what = f"--seq-len {seq_len} is longer than the model's max_seq_len = {longest}"
        raise UserError(what, f"give --seq-len {longest} or less")
    return seq_len


def _micro_batch(device_type: str, seq_len: int) -> int:
    """Rows at once."""
    from mmcli.model.device import MICRO_BATCH_TOKENS

    return max(1, MICRO_BATCH_TOKENS.get(device_type, 1024) // seq_len)


def _with_progress(batches: Iterator[Batch], total: int, report: Reporter) -> Iterator[Batch]:
    """The batches; each is reported once it is done."""
    done = 0
    for batch in batches:
        yield batch
        done += batch.tokens
        report.progress("evaluate", done, total, "tokens")


def evaluation_rows(cache: TokenCache, seq_len: int) -> Rows:
    """Rows in which every token of every sequence but its first is predicted once: nothing is cut off or left out.

    A sequence of up to `seq_len` + 1 tokens stays whole, so its loss is the same wherever it lies; a longer one is
    read in windows of `seq_len` tokens, each without what came before it.
    """
    lengths = np.asarray(cache.lengths)
    counts = np.maximum(1, -(-(lengths - 1) // seq_len))  # windows of each sequence
    documents = np.repeat(np.arange(len(cache)), counts)
    nth = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = nth * seq_len
    windows = Selection(documents, starts, np.minimum(starts + seq_len + 1, lengths[documents]))
    row = int(min(seq_len, (lengths - 1).max()))
    return pack_cache(cache, row, selection=windows, split=False)
