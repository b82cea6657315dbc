"""Pretraining: next-token prediction on plain text, or on a mixture of text and conversations."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from mmcli.data.pack.batches import in_parts, make_batch
from mmcli.data.sources.sources import open_data
from mmcli.errors import UserError
from mmcli.stage import StageContext
from mmcli.stages import PretrainConfig
from mmcli.stages.samples import continuations
from mmcli.stages.start import Start, prepare_start
from mmcli.stages.tokens import TokenRows, open_rows, token_task
from mmcli.train.adapters import training_flops
from mmcli.train.bigrams import MOST_PAIRS, Bigrams, can_start_from_bigrams, fit_bigrams, fitting_flops
from mmcli.train.checkpoint import list_checkpoints
from mmcli.train.config import duration
from mmcli.train.device import measure_peak_flops
from mmcli.train.loop import train

PROMPT_TOKENS = 12
ROWS_AT_ONCE = 64  # counted together
MOST_OF_TRAINING = 0.6  # that fitting the bigrams may take
SPEED_REACHED = 0.5  # of the rate of a large matrix product


def run(config: PretrainConfig, context: StageContext) -> dict[str, Any]:
    """Train on plain text, or a mixture; the totals of the run."""
    data = open_data("text", config.data, mixed=True, course=True)  # refuse what is not there before anything is made
    start = prepare_start(config.model, data, config.train, context)
    options: dict[str, Any] = {}
    if data.train.kind == "mixed":  # as sft encodes a mixture, so that both take one cache
        options = {"train_on": "all", "train_reasoning": True, "mask_prompts": config.mask_prompts}
    rows = open_rows(data, config.train, start.tokenizer, context, **options)
    sample = continuations(start, rows, config.train.seed, prompt_tokens=PROMPT_TOKENS)
    seconds = start_from_bigrams(start, rows, config, context)
    task = token_task(start, rows, config.train, context, sample=sample)
    return train(replace(task, prepared_seconds=seconds), config.optim, config.train, context)


def start_from_bigrams(start: Start, rows: TokenRows, config: PretrainConfig, context: StageContext) -> float:
    """Fit a new model to the bigrams of what it is trained on, where that is asked for or pays; the seconds taken.

    Raises:
        UserError: `--init bigram` of a model that starts from another, or whose shape does not allow it.
    """
    began = time.perf_counter()
    shape, new = start.model.config, start.parent is None
    if config.init == "bigram" and not (new and can_start_from_bigrams(shape)):
        why = "blocks one after the other and rotary positions are needed" if new else "it starts from another model"
        raise UserError(f"--init bigram does not fit this model: {why}", "leave --init out")
    if not new or not context.ranks.is_writer or (context.resume and list_checkpoints(context.run.checkpoints)):
        return 0.0
    if context.run.choose("init", lambda: choose_init(start, rows, config)) == "random":
        return 0.0
    loss = fit_bigrams(start.model, count_pairs(rows, shape.vocab_size), config.train.seed)
    seconds = time.perf_counter() - began
    context.report.note(f"the model begins with the bigrams of its data: loss {loss:.2f} ({duration(seconds)})")
    return seconds


def choose_init(start: Start, rows: TokenRows, config: PretrainConfig) -> str:
    """ "bigram" where the shape allows it and the fit takes a small part of the training, else "random"."""
    if config.init != "auto":
        return config.init
    if not can_start_from_bigrams(start.model.config):
        return "random"
    needed = fitting_flops(start.model.config)
    if config.train.budget_seconds is not None:
        available = config.train.budget_seconds * SPEED_REACHED * measure_peak_flops(start.accelerator)
    else:
        row = training_flops(start.model, rows.train.seq_len) * rows.train.seq_len
        steps = config.train.steps or config.train.passes * len(rows.train) / config.train.batch_size
        available = steps * config.train.batch_size * row
    return "bigram" if needed < MOST_OF_TRAINING * available else "random"


def count_pairs(rows: TokenRows, vocab_size: int) -> Bigrams:
    """The bigrams of the rows to train on, of evenly chosen ones where there are very many."""
    every = max(1, -(-rows.train.tokens // MOST_PAIRS))
    parts = in_parts(np.arange(0, len(rows.train), every), ROWS_AT_ONCE)
    batches = (make_batch(rows.cache, rows.train, part) for part in parts)
    return Bigrams.count(((batch.ids_BT, batch.labels_BT) for batch in batches), vocab_size)
