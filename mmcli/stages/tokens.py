"""Stages that learn to predict tokens (pretrain, sft): data -> rows -> a task for the loop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mmcli.data.encode.cache import TOKEN_CACHES, TokenCache
from mmcli.data.encode.parts import PART, build_in_parts
from mmcli.data.encode.prompts import mismatch_of_records
from mmcli.data.pack.batches import Batches, evaluation_batches
from mmcli.data.pack.packing import Rows, RowSet, pack_cache, trainable
from mmcli.data.pack.selection import Selection, shard_count, split_documents
from mmcli.data.pack.shards import ShardedRows, choose_documents
from mmcli.data.sources.sources import OpenedData, Sources
from mmcli.evaluation.loss import model_losses, sum_losses
from mmcli.inputs import pin_inputs
from mmcli.stage import Metric, StageContext
from mmcli.stages.pins import part_inputs
from mmcli.stages.start import Start, choose_micro_batch, save_adapter, save_into
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.adapters import training_flops
from mmcli.train.config import TrainConfig
from mmcli.train.lm import TokenBatch, language_model_loss, language_model_metrics
from mmcli.train.task import MicroBatches, Task

RECORDS_SHOWN = 8
HELD_OUT_METRICS = (Metric("val_loss", label="val"), Metric("val_bits_per_byte", label="bpb"))
Sample = Callable[[nn.Module, int], list[tuple[str, str]]]


@dataclass(frozen=True)
class TokenRows:
    """Packed rows to train on, and those held out."""

    cache: TokenCache
    train: RowSet
    val_cache: TokenCache
    val: Rows | None  # None: there is too little data to hold anything out


def open_cache(
    sources: Sources, tokenizer: Tokenizer, context: StageContext, *, part: str = "", **options: Any
) -> TokenCache:
    """The token cache of `sources`, built if it is not there yet; what was rejected is reported.

    Args:
        part: which of a run's data it is; each part has its own quarantine file.
        options: of the encoder (see `mmcli.data.encode.encoders`).

    Raises:
        UserError: no record that can be used, or a resumed run began with other data.
    """
    context.report.note(f"data: {sources.describe}")
    pin_inputs(context, part_inputs(sources, part, options, context))
    quarantine = context.run.path / (f"quarantine-{part}.jsonl" if part else "quarantine.jsonl")
    kept_in = quarantine if context.run.is_writable else None
    folder = context.run.path.parent / TOKEN_CACHES
    started = time.perf_counter()
    cache = TokenCache.build_or_open(
        folder,
        sources,
        tokenizer,
        options=options,
        report=context.report,
        quarantine=kept_in,
        build=functools.partial(build_in_parts, ranks=context.ranks) if sources.size > PART else None,
        check=context.run.is_writable,  # of several ranks the first one has done that
    )
    if context.trial is not None:
        context.run.update(encode_seconds=time.perf_counter() - started + context.run.info().get("encode_seconds", 0.0))
    for line in cache.tally.lines():
        context.report.warn(line)
    if cache.tally.rejected:
        context.report.note(f"rejected records are kept in {quarantine}")
    if sources.kind != "text" and not part.endswith("val"):
        reason = mismatch_of_records(sources.kind, sources.records(), tokenizer)
        if reason is not None:
            context.report.warn(reason)
    return cache


def open_caches(
    data: OpenedData, tokenizer: Tokenizer, context: StageContext, part: str = "", **options: Any
) -> tuple[TokenCache, TokenCache]:
    """The token caches of what is trained on and of what is held out, which is the same one without `--val`."""
    cache = open_cache(data.train, tokenizer, context, part=part, **options)
    if data.val is None:
        return cache, cache
    return cache, open_cache(data.val, tokenizer, context, part=f"{part}val", **options)


def open_split(
    data: OpenedData,
    seed: int,
    tokenizer: Tokenizer,
    context: StageContext,
    part: str = "",
    *,
    usable: Callable[[TokenCache], np.ndarray],
    **options: Any,
) -> tuple[TokenCache, Selection, TokenCache, Selection]:
    """(cache, what is trained on, cache, what is held out): the files of `--val`, or a part of the data.

    Args:
        usable: [R] bool, the records of a cache that the stage can use; only such are held out.

    Raises:
        UserError: the data cannot be used (see `open_cache`).
    """
    cache, val_cache = open_caches(data, tokenizer, context, part, **options)
    kept, held = _split(data, seed, cache, val_cache, usable)
    _tell_split(data, held, kept.describe_mixture(cache), context)
    return cache, kept, val_cache, held


def _split(
    data: OpenedData,
    seed: int,
    cache: TokenCache,
    val_cache: TokenCache,
    usable: Callable[[TokenCache], np.ndarray],
) -> tuple[Selection, Selection]:
    if data.val is not None:
        return Selection.whole(cache).mixed(cache, seed), Selection.whole(val_cache).mixed(val_cache, seed)
    config = data.config
    return split_documents(cache, config.val_fraction, seed, max_tokens=config.val_tokens, usable_R=usable(cache))


def _tell_split(data: OpenedData, held: Selection, mixture: str | None, context: StageContext) -> None:
    if not len(held) and data.val is None and data.config.val_fraction > 0:
        context.report.note("nothing is held out for validation: there are too few usable records")
    if mixture is not None:
        context.report.note(mixture)


def open_rows(
    data: OpenedData,
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
    config, seq_len, seed = data.config, data.config.seq_len, train.seed
    cache, val_cache = open_caches(data, tokenizer, context, part, **options)
    rows: RowSet

    def usable(cache: TokenCache) -> np.ndarray:
        usable_RS = trainable(cache, Selection.whole(cache), seq_len).reshape(-1, cache.sequences_per_record)
        return np.asarray(usable_RS.all(axis=1))

    if (shards := shard_count(cache)) > 1:
        fraction = config.val_fraction if data.val is None else 0.0
        choice, held = choose_documents(cache, fraction, seed, max_tokens=config.val_tokens, seq_len=seq_len)
        held = held if data.val is None else Selection.whole(val_cache).mixed(val_cache, seed)
        rows = ShardedRows(cache, choice, seq_len, seed=seed, shards=shards, report=context.report)
        _tell_split(data, held, rows.describe_mixture(), context)
    else:
        kept, held = _split(data, seed, cache, val_cache, usable)
        _tell_split(data, held, kept.describe_mixture(cache), context)
        rows = pack_cache(cache, seq_len, selection=kept, seed=seed)
    val = pack_cache(val_cache, seq_len, selection=held, seed=seed) if len(held) else None
    context.report.note(rows.describe() + (f"; held out: {held.tokens:,} tokens" if val else ""))
    tally = cache.tally
    context.run.update(
        data={
            "sources": list(data.config.sources),
            "kind": cache.kind,
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
    context: StageContext,
    *,
    sample: Sample | None = None,
) -> Task:
    """The task of predicting the tokens of packed rows."""
    config, accelerator = start.model.config, start.accelerator
    micro_batch = choose_micro_batch(train, config, rows.train.seq_len, accelerator, context)
    batches = Batches(
        rows.cache, rows.train, batch_size=train.batch_size, micro_batch=micro_batch.size, seed=train.seed
    )
    byte_lengths_V = start.tokenizer.byte_lengths()

    def step_batch(part: np.ndarray) -> TokenBatch:
        return TokenBatch.from_batch(batches.make(part), config, pin=accelerator.pins_memory)

    def evaluate(model: Any) -> dict[str, float]:
        assert rows.val is not None
        found = evaluation_batches(rows.val_cache, rows.val, micro_batch.size)
        values = sum_losses(model_losses(model, found), byte_lengths_V)
        if not values.tokens:
            return {}
        per_byte = {"val_bits_per_byte": values.bits_per_byte} if values.bytes else {}  # control tokens have no bytes
        return {"val_loss": values.loss, **per_byte}

    def describe(step: int, where: Sequence[int]) -> str:
        parts = batches.parts(step, micro_batch.size)
        return name_records(rows.cache, rows.train, np.concatenate([parts[i] for i in where]))

    return Task(
        model=start.model,
        accelerator=accelerator,
        batches=lambda step: MicroBatches(batches.parts(step, micro_batch.size), step_batch),
        loss=lambda model, batch: language_model_loss(model, batch, config),
        steps_per_epoch=batches.steps_per_epoch,
        flops_per_token=training_flops(start.model, rows.train.seq_len),
        save_model=lambda folder: save_into(folder, start, context),
        save_adapter=lambda: save_adapter(start, context),
        metrics=(*language_model_metrics(config), *HELD_OUT_METRICS),
        evaluate=evaluate if rows.val is not None else None,
        evaluation_tokens=rows.val.tokens if rows.val is not None else 0,
        halve=micro_batch.halve,
        describe=describe,
        sample=sample,
        planned=batches.plan,
    )


def name_records(cache: TokenCache, rows: RowSet, which: np.ndarray) -> str:
    """The records in the rows `which`, in words: their numbers among those kept, from 1, in the order of the data."""
    documents = {document for row in which.tolist() for document, _, _ in rows.pieces(row)}
    records = sorted({document // cache.sequences_per_record + 1 for document in documents})
    shown = ", ".join(f"{each:,}" for each in records[:RECORDS_SHOWN])
    more = len(records) - RECORDS_SHOWN
    return f"{'record' if len(records) == 1 else 'records'} {shown}" + (f" and {more:,} more" if more > 0 else "")
