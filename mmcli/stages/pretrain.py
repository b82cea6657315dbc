"""Pretraining: next-token prediction on plain text."""

from __future__ import annotations

from typing import Any

from mmcli.data.batches import make_batch
from mmcli.data.sources import open_sources
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.stage import StageContext
from mmcli.stages import PretrainConfig
from mmcli.stages.setup import Start, describe_model, prepare_start
from mmcli.stages.tokens import Sample, TokenRows, open_rows, token_task
from mmcli.train.device import choose_placement, make_deterministic
from mmcli.train.loop import train

PROMPT_TOKENS = 12
SAMPLE_TOKENS = 40


def run(config: PretrainConfig, context: StageContext) -> dict[str, Any]:
    """Train on plain text; the totals of the run."""
    make_deterministic()
    placement = choose_placement(config.train.device, config.train.precision)
    open_sources(config.data.sources)  # refuse what is not there before anything is made
    start = prepare_start(config.model, config.data, config.train, context, placement.device)
    context.report.note(describe_model(start.model.config, context.run.info().get("preset")))
    rows = open_rows("text", config.data, config.train, start.tokenizer, context)
    sample = _continuations(start, rows, config.train.seed)
    task = token_task(start, rows, config.train, placement, context, sample=sample)
    return train(task, config.optim, config.train, context)


def _continuations(start: Start, rows: TokenRows, seed: int) -> Sample:
    """Continue the beginning of a held-out row (of a training row, if nothing is held out)."""
    cache, packed = (rows.val_cache, rows.val) if rows.val is not None else (rows.cache, rows.train)

    def sample(model: Any, step: int) -> list[tuple[str, str]]:
        row = make_batch(cache, packed, [step % len(packed)])
        length = min(PROMPT_TOKENS, int((row.segments_BT[0] == 0).sum()), model.config.max_seq_len - 1)
        prompt = row.ids_BT[0, :length].tolist()
        room = min(length + SAMPLE_TOKENS, model.config.max_seq_len)
        engine = TorchEngine(model, max_len=room)
        stop = [] if start.tokenizer.eos_id is None else [start.tokenizer.eos_id]
        sampling = SamplingConfig(temperature=0.7, seed=seed)
        ids = list(generate(engine, 0, prompt, sampling, max_new_tokens=SAMPLE_TOKENS, stop_ids=stop))
        return [(start.tokenizer.decode(prompt), start.tokenizer.decode(ids))]

    return sample
