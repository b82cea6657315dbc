"""Training throughput: forward and backward passes over random rows, without data and optimizer."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from mmcli.data.pack.batches import Batch
from mmcli.errors import UserError
from mmcli.generate.bench import check_repeats, peak_memory_bytes
from mmcli.model.transformer import Transformer
from mmcli.train.device import Accelerator, keep_freed_memory
from mmcli.train.lm import TokenBatch, language_model_loss


@dataclass(frozen=True)
class TrainSpeed:
    """Training throughput: the median over `repeats`, after one pass that does not count."""

    tokens_per_second: float
    slowest: float
    fastest: float
    step_seconds: float
    loss: float  # of the random rows: near ln(vocabulary) for a new model
    peak_memory_bytes: int | None  # of the GPU on CUDA, else of the whole process since its start
    repeats: int


def bench_train(
    model: Transformer, accelerator: Accelerator, *, batch_size: int, seq_len: int, repeats: int = 5
) -> TrainSpeed:
    """Forward and backward over `batch_size` rows of `seq_len` random tokens, with the loss of pretraining.

    Raises:
        UserError: no rows, no repeats, or rows longer than the model's context.
    """
    check_repeats(repeats)
    longest = model.config.max_seq_len
    if batch_size < 1 or not 2 <= seq_len <= longest:
        what = f"{batch_size} rows of {seq_len} tokens for a model with a context of {longest:,}"
        raise UserError(what, f"give 1 row or more, of 2 up to {longest} tokens")
    keep_freed_memory()
    model = model.to(accelerator.device).train()
    rows = random_rows(model.config.vocab_size, batch_size, seq_len)
    tokens = TokenBatch.from_batch(rows, model.config).to(accelerator.device)
    seconds = []
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with accelerator.autocast():
            output = language_model_loss(model, tokens, model.config)
        total = torch.stack([term.coef * term.sum / term.count for term in output.terms.values()]).sum()
        total.backward()
        loss = float(total.detach())  # waits for the device
        seconds.append(time.perf_counter() - start)
    rates = [batch_size * seq_len / each for each in seconds[1:]]
    on_gpu = accelerator.device.type == "cuda"
    return TrainSpeed(
        tokens_per_second=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        step_seconds=statistics.median(seconds[1:]),
        loss=loss,
        peak_memory_bytes=torch.cuda.max_memory_allocated(accelerator.device) if on_gpu else peak_memory_bytes(),
        repeats=repeats,
    )


def random_rows(vocab_size: int, rows: int, seq_len: int) -> Batch:
    """Rows of one document each, every token trained."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, seq_len + 1))
    positions_BT = np.tile(np.arange(seq_len), (rows, 1))
    return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), positions_BT, np.zeros_like(positions_BT))
