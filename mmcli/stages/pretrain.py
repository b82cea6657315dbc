"""Pretraining: next-token prediction on plain text."""

from __future__ import annotations

from typing import Any

from mmcli.data.sources.sources import open_data
from mmcli.stage import StageContext
from mmcli.stages import PretrainConfig
from mmcli.stages.samples import continuations
from mmcli.stages.start import prepare_start
from mmcli.stages.tokens import open_rows, token_task
from mmcli.train.device import choose_accelerator, make_deterministic
from mmcli.train.loop import train

PROMPT_TOKENS = 12


def run(config: PretrainConfig, context: StageContext) -> dict[str, Any]:
    """Train on plain text; the totals of the run."""
    make_deterministic()
    accelerator = choose_accelerator(config.train.device, config.train.precision, context, width=config.model.dim)
    data = open_data("text", config.data)  # refuse what is not there before anything is made
    start = prepare_start(config.model, data, config.train, context, accelerator.device)
    rows = open_rows(data, config.train, start.tokenizer, context)
    sample = continuations(start, rows, config.train.seed, prompt_tokens=PROMPT_TOKENS)
    task = token_task(start, rows, config.train, accelerator, context, sample=sample)
    return train(task, config.optim, config.train, context)
