"""The work of `mmcli distill`: the task of predicting tokens, with the teacher's distributions in its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmcli.api import (
    LossOutput,
    Metric,
    MicroBatches,
    ModelRef,
    StageContext,
    Start,
    StepBatch,
    Task,
    TokenBatch,
    Tokenizer,
    TokenRows,
    UserError,
    find_reference,
    load_model,
    make_deterministic,
    open_data,
    open_rows,
    pin_model,
    prepare_start,
    read_inputs,
    read_model_config,
    token_task,
    train,
    training_device,
)
from mmcli_distill import DistillConfig
from mmcli_distill.loss import TaughtBatch, distill_loss, table_loss
from mmcli_distill.replies import write_replies
from mmcli_distill.table import TeacherTable

TABLES = ".cache/teacher"  # in the runs folder; safe to delete
METRICS = (Metric("loss"), Metric("kl", label="KL"), Metric("cross_entropy", label="plain"))


def run(config: DistillConfig, context: StageContext) -> dict[str, Any]:
    """Train on data and teacher; the totals of the run.

    Raises:
        UserError: the data or a model cannot be used, or teacher and student have different tokenizers.
    """
    data_config, named = config.data, find_reference(config.teacher, context)
    if config.train.start_from is None and data_config.tokenizer is None:
        data_config = replace(data_config, tokenizer=str(named.path))
    kind = "text" if config.on == "text" else "chat"
    data = open_data(kind, data_config)  # refuse what is not there before anything is made
    if config.on == "replies":
        device = training_device(config.train.device)
        make_deterministic(device)
        file = write_replies(named, data, config.max_new_tokens, str(device), context)
        data = open_data(kind, replace(data_config, sources=(str(file),), columns=None))
    start = prepare_start(config.model, data, config.train, context)
    if config.reads_distributions:
        _check_teacher(named, start, config, context)
    rows = open_rows(data, config.train, start.tokenizer, context)
    task = token_task(start, rows, config.train, context)
    if config.reads_distributions:
        task = (_with_table if config.top_k else _with_teacher)(task, start, named, rows, config, context)
        held_out = tuple(metric for metric in task.metrics if metric.held_out)
        task = replace(task, metrics=(*METRICS, *held_out))
    return train(task, config.optim, config.train, context)


def _check_teacher(named: ModelRef, start: Start, config: DistillConfig, context: StageContext) -> None:
    """Refuse a teacher whose distributions are not over the student's tokens; a resumed run has it checked already.

    Raises:
        UserError: another tokenizer, other logits, or as many likeliest tokens as there are.
    """
    if context.resume and not (named.path / "config.json").is_file():
        return
    if Tokenizer.load(named.path).fingerprint != start.tokenizer.fingerprint:
        what = (
            f"the teacher {named.label} has another tokenizer than the student: their distributions have other tokens"
        )
        fix = "give a teacher with the same tokenizer, or leave --from and --tokenizer out"
        raise UserError(what, f"{fix}; or learn from its replies alone: --on replies --mix 0")
    size, own = read_model_config(named.path).vocab_size, start.model.config.vocab_size
    if size != own:
        raise UserError(f"teacher and student have {size} and {own} logits", "give both the same model.vocab_size")
    if config.top_k >= own:
        what = f"top_k = {config.top_k} of a vocabulary of {own} leaves nothing out"
        raise UserError(what, "give fewer, such as 32, or leave --top-k out")


def _with_teacher(
    task: Task,
    start: Start,
    named: ModelRef,
    rows: TokenRows,
    config: DistillConfig,
    context: StageContext,
) -> Task:
    """The teacher reads every micro-batch, too."""
    pin_model("reference", named, context)
    teacher = load_model(named.path, device=start.accelerator.device).eval().requires_grad_(False)

    def loss(model: Any, batch: TokenBatch) -> LossOutput:
        return distill_loss(model, teacher, batch, start.model.config, config)

    return replace(task, loss=loss)


def _with_table(
    task: Task,
    start: Start,
    named: ModelRef,
    rows: TokenRows,
    config: DistillConfig,
    context: StageContext,
) -> Task:
    """What the teacher expects is read from the disk; it runs before the first step, where that is not there yet."""
    table = TeacherTable.of(
        context.runs_dir / TABLES,
        rows,
        read_inputs(context.run)["reference"].key,
        k=config.top_k,
        temperature=config.temperature,
        seed=config.train.seed,
        needed=_needed(config, len(rows.train), context),
        accelerator=start.accelerator,
    )
    if missing := table.missing(context.report):
        pin_model("reference", named, context)
        teacher = load_model(named.path, device=start.accelerator.device).eval().requires_grad_(False)
        table.fill(missing, teacher, start.accelerator, context.report)
    context.report.note(f"teacher: {config.top_k} likeliest tokens, {table.bytes / 1e6:,.1f} MB in {table.folder}")

    def with_teacher(part: np.ndarray, batch: StepBatch) -> TaughtBatch:
        assert isinstance(batch, TokenBatch)
        top_NK, logps_NK1 = map(torch.from_numpy, table.read(part))
        if start.accelerator.pins_memory:
            top_NK, logps_NK1 = top_NK.pin_memory(), logps_NK1.pin_memory()
        return TaughtBatch(batch, top_NK, logps_NK1)

    def batches(step: int) -> Sequence[StepBatch]:
        assert task.batches is not None
        found = task.batches(step)
        assert isinstance(found, MicroBatches)
        return MicroBatches(found.parts, lambda part: with_teacher(part, found.make(part)))

    def loss(model: Any, batch: TaughtBatch) -> LossOutput:
        return table_loss(model, batch, start.model.config, config)

    return replace(task, batches=batches, loss=loss)


def _needed(config: DistillConfig, rows: int, context: StageContext) -> int:
    """Rows that a training meets: all, where its length is not known before or reaches an epoch."""
    steps = config.train.steps
    if context.trial is not None:
        steps = context.trial.steps + 1
    elif steps is None or config.train.budget is not None:
        return rows
    return min(rows, steps * config.train.batch_size)
