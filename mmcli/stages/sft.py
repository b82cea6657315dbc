"""Supervised fine-tuning: conversations, loss on the assistant's tokens alone, end of turn included; and some text."""

from __future__ import annotations

from typing import Any

from mmcli.data.sources.sources import open_data
from mmcli.stage import StageContext
from mmcli.stages import SftConfig
from mmcli.stages.samples import continuations
from mmcli.stages.start import prepare_start
from mmcli.stages.tokens import open_rows, token_task
from mmcli.train.loop import train


def run(config: SftConfig, context: StageContext) -> dict[str, Any]:
    """Train on conversations; the totals of the run."""
    data = open_data("chat", config.data, mixed=True, course=True)  # refuse what is not there before anything is made
    start = prepare_start(None, data, config.train, context)
    options: dict[str, Any] = {"train_on": config.train_on, "train_reasoning": config.train_reasoning}
    if data.train.kind == "mixed":
        options["mask_prompts"] = True
    rows = open_rows(data, config.train, start.tokenizer, context, **options)
    sample = continuations(start, rows, config.train.seed, prompt_tokens=None)
    task = token_task(start, rows, config.train, context, sample=sample)
    return train(task, config.optim, config.train, context)
