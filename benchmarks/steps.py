"""What the step benchmarks share: a training step of a model of ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mmcli.api import (
    Accelerator,
    Batch,
    ModelConfig,
    OptimConfig,
    TokenBatch,
    Transformer,
    build_optimizer,
    keep_freed_memory,
    language_model_loss,
)

THREADS = 2
CPU = Accelerator(torch.device("cpu"), "fp32")


def random_ids(rows: int, tokens: int, vocab_size: int) -> np.ndarray:
    """[rows, tokens + 1] random token ids."""
    return np.random.default_rng(0).integers(0, vocab_size, (rows, tokens + 1))


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The end of every contestant's step: clip, AdamW, no gradients left."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def llama(config: ModelConfig) -> torch.nn.Module:
    """transformers' Llama of the same shape, with its own random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(shape)


def our_step(
    config: ModelConfig,
    ids: np.ndarray,
    *,
    micro_batch: int,
    compiled: bool = True,
    accelerator: Accelerator = CPU,
    optimizer: str = "adamw",
) -> Callable[[], None]:
    """A function that does one training step (forward, backward, clip, update) on these rows, as the loop does."""
    keep_freed_memory()
    model = Transformer(config).to(accelerator.device)
    dtype = torch.bfloat16 if accelerator.precision == "bf16" else torch.float32
    updates = build_optimizer(model, OptimConfig(optimizer=optimizer), dtype=dtype)  # type: ignore[arg-type]
    forward = torch.compile(model, dynamic=False) if compiled else model
    batches = []
    for first in range(0, len(ids), micro_batch):
        part = ids[first : first + micro_batch]
        positions = np.tile(np.arange(part.shape[1] - 1), (len(part), 1))
        batch = Batch(part[:, :-1].copy(), part[:, 1:].copy(), positions, np.zeros_like(positions))
        batches.append(TokenBatch.from_batch(batch, config, pin=accelerator.pins_memory))
    targets = float(sum(batch.counts["loss"] for batch in batches))

    def step() -> None:
        for batch in batches:
            with accelerator.autocast():
                terms = language_model_loss(forward, batch.to(accelerator.device), config).terms
            total = terms["loss"].sum / targets
            if "balance" in terms:
                total = total + config.aux_loss_alpha * terms["balance"].sum / len(ids)
            total.backward()
        update(model, updates)

    return step
