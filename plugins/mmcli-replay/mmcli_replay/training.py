"""The work of `mmcli continue`: two tasks of predicting tokens, old and new text, become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mmcli.api import (
    DataConfig,
    Layer,
    Metric,
    StageContext,
    Start,
    StepBatch,
    Task,
    TokenRows,
    continuations,
    open_data,
    open_rows,
    pin_data,
    prepare_start,
    resolve,
    token_task,
    train,
)
from mmcli_replay import ContinueConfig
from mmcli_replay.history import OldText, old_text

PROMPT_TOKENS = 12


def run(config: ContinueConfig, context: StageContext) -> dict[str, Any]:
    """Train on new and old text; the totals of the run.

    Raises:
        UserError: data or model cannot be used, or no run tells what the old text was.
    """
    opened = open_data("text", config.data)  # refuse what is not there before anything is made
    start = prepare_start(None, opened, config.train, context)
    old_rows = _open_old(config, start, context)
    new_rows = open_rows(opened, config.train, start.tokenizer, context)
    of_new, of_old = config.train.batch_size - config.old_rows, config.old_rows
    context.report.note(f"every step: {of_new} rows of new text, {of_old} of old")
    sample = continuations(start, new_rows, config.train.seed, prompt_tokens=PROMPT_TOKENS)
    new_train, old_train = (replace(config.train, batch_size=rows) for rows in (of_new, of_old))
    new = token_task(start, new_rows, new_train, context, sample=sample)
    old = token_task(start, old_rows, old_train, context)
    return train(mixed(new, old), config.optim, config.train, context)


def mixed(new: Task, old: Task) -> Task:
    """One task whose every step has the rows of both. An epoch is one of the new text."""
    batches_of_new, batches_of_old = new.batches, old.batches
    assert batches_of_new is not None and batches_of_old is not None

    def batches(step: int) -> Sequence[StepBatch]:
        return [*batches_of_new(step), *batches_of_old(step)]

    def evaluate(model: nn.Module) -> dict[str, float]:
        values = new.evaluate(model) if new.evaluate is not None else {}
        if old.evaluate is not None:
            values |= {f"val_old_{name.removeprefix('val_')}": each for name, each in old.evaluate(model).items()}
        return values

    def halve() -> int | None:
        sizes = [task.halve() for task in (new, old) if task.halve is not None]
        return max((size for size in sizes if size is not None), default=None)

    def describe(step: int, where: Sequence[int]) -> str:
        count = len(batches_of_new(step))
        parts = {"new": (new, [i for i in where if i < count]), "old": (old, [i - count for i in where if i >= count])}
        said = [f"{name} {task.describe(step, own)}" for name, (task, own) in parts.items() if own and task.describe]
        return ", ".join(said)

    held_out = new.evaluate is not None or old.evaluate is not None
    tokens = new.evaluation_tokens + old.evaluation_tokens
    metrics = (*new.metrics, Metric("val_old_loss", label="old"))
    return replace(
        new,
        batches=batches,
        metrics=metrics,
        evaluate=evaluate if held_out else None,
        evaluation_tokens=tokens,
        halve=halve,
        describe=describe,
    )


def _open_old(config: ContinueConfig, start: Start, context: StageContext) -> TokenRows:
    """Rows of the old text; what the pretraining held out is held out again, so that it measures forgetting."""
    if config.replay is None:
        assert start.parent is not None
        old = old_text(start.parent)
    else:
        split = {"val_fraction": config.data.val_fraction, "val_tokens": config.data.val_tokens}
        old = OldText({"sources": list(config.replay), **split}, config.train.seed)
    context.run.choose("replay", lambda: old.data["sources"])
    values = {**old.data, "seq_len": config.data.seq_len, "strict": config.data.strict}
    data = pin_data(resolve(DataConfig, [Layer("the replayed text", values)]).config, context.run)
    rows = open_rows(
        open_data("text", data), replace(config.train, seed=old.seed), start.tokenizer, context, part="old"
    )
    context.run.update(replay=context.run.info()["data"])  # "data" will be that of the new text
    return rows
