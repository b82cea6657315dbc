"""Stages that learn to predict tokens (pretrain, sft): data -> rows -> a task for the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmcli.data.config import DataConfig
from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batches, evaluation_batches
from mmcli.data.pack.packing import Rows, pack_cache
from mmcli.data.pack.selection import Selection, split_documents
from mmcli.data.records.kinds import Kind
from mmcli.evaluation.loss import model_losses, sum_losses
from mmcli.stage import StageContext
from mmcli.stages.start import Start, choose_micro_batch, open_data, save_into
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.adapters import training_flops
from mmcli.train.config import TrainConfig
from mmcli.train.device import Accelerator
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.loop import Task

CACHE = ".cache/tokens"  # in the runs folder; safe to delete
Sample = Callable[[nn.Module, int], list[tuple[str, str]]]


@dataclass(frozen=True)
class TokenRows:
    """Packed rows to train on, and those held out."""

    cache: TokenCache
    train: Rows
    val_cache: TokenCache
    val: Rows | None  # None: there is too little data to hold anything out


def open_cache(
    kind: Kind,
    names: Sequence[str],
    data: DataConfig,
    tokenizer: Tokenizer,
    context: StageContext,
    *,
    part: str = "",
    **options: Any,
) -> TokenCache:
    """The token cache of what `names` names, built if it is not there yet; what was rejected is said.

    Args:
        part: which of a run's data it is; each part has its own quarantine file.
        options: of the encoder (see `mmcli.data.encode.encoders`).

    Raises:
        UserError: a missing or unreadable source, or no record that can be used.
    """
    sources = open_data(kind, data, names)
    context.report.note(f"data: {sources.describe}")
    quarantine = context.run.path / (f"quarantine-{part}.jsonl" if part else "quarantine.jsonl")
    folder = context.run.path.parent / CACHE
    cache = TokenCache.build_or_open(
        folder, sources, tokenizer, options=options, report=context.report, quarantine=quarantine
    )
    for line in cache.tally.lines():
        context.report.warn(line)
    if cache.tally.rejected:
        context.report.note(f"rejected records are kept in {quarantine}")
    return cache


def open_parts(
    kind: Kind, data: DataConfig, seed: int, tokenizer: Tokenizer, context: StageContext, part: str = "", **options: Any
) -> tuple[TokenCache, Selection, TokenCache, Selection]:
    """(cache, what is trained on, cache, what is held out): the files of `--val`, or a part of the data.

    Raises:
        UserError: the data cannot be used (see `open_cache`).
    """
    cache = open_cache(kind, data.sources, data, tokenizer, context, part=part, **options)
    if data.val is not None:
        val_cache = open_cache(kind, data.val, data, tokenizer, context, part=f"{part}val", **options)
        kept, held = Selection.whole(cache).mixed(cache, seed), Selection.whole(val_cache).mixed(val_cache, seed)
    else:
        val_cache = cache
        kept, held = split_documents(cache, data.val_fraction, seed, max_tokens=data.val_tokens)
    if line := kept.describe_mixture(cache):
        context.report.note(line)
    return cache, kept, val_cache, held


def open_rows(
    kind: Kind,
    data: DataConfig,
    train: TrainConfig,
    tokenizer: Tokenizer,
    context: StageContext,
    *,
    part: str = "",
    **options: Any,
) -> TokenRows:
    """Rows to train on and rows held out.

    Raises:
        UserError: the data cannot be used (see `open_cache`), or nothing is left to train on.
    """
    cache, kept, val_cache, held = open_parts(kind, data, train.seed, tokenizer, context, part, **options)
    rows = pack_cache(cache, data.seq_len, selection=kept, seed=train.seed)
    val = pack_cache(val_cache, data.seq_len, selection=held, seed=train.seed) if len(held) else None
    context.report.note(rows.describe() + (f"; held out: {held.tokens:,} tokens" if val else ""))
    tally = cache.tally
    context.run.update(
        data={
            "sources": list(data.sources),
            "cache": cache.key,
            "kept": tally.kept,
            "rejected": tally.rejected,
            "tokens": cache.tokens,
            "utilisation": round(rows.utilisation, 5),
        }
    )
    return TokenRows(cache, rows, val_cache, val)


def token_task(
    start: Start,
    rows: TokenRows,
    train: TrainConfig,
    accelerator: Accelerator,
    context: StageContext,
    *,
    sample: Sample | None = None,
) -> Task:
    """The task of predicting the tokens of packed rows."""
    config, device = start.model.config, accelerator.device
    micro_batch = choose_micro_batch(train, config, rows.train.seq_len, accelerator, context)
    batches = Batches(rows.cache, rows.train, batch_size=train.batch_size, micro_batch=micro_batch, seed=train.seed)
    byte_lengths_V = start.tokenizer.byte_lengths()

    def step_batches(model: nn.Module, step: int) -> list[TokenBatch]:
        return [TokenBatch.from_batch(batch, config, device) for batch in batches.micro_batches(step)]

    def evaluate(model: Any) -> dict[str, float]:
        assert rows.val is not None
        found = evaluation_batches(rows.val_cache, rows.val, micro_batch)
        values = sum_losses(model_losses(model, found), byte_lengths_V)
        return {"val_loss": values.loss, "val_bits_per_byte": values.bits_per_byte}

    return Task(
        model=start.model,
        accelerator=accelerator,
        batches=step_batches,
        loss=lambda model, batch: language_model_loss(model, batch, config),
        steps_per_epoch=batches.steps_per_epoch,
        flops_per_token=training_flops(start.model, rows.train.seq_len),
        save_model=lambda folder: save_into(folder, start, context),
        evaluate=evaluate if rows.val is not None else None,
        evaluation_tokens=rows.val.tokens if rows.val is not None else 0,
        sample=sample,
    )
