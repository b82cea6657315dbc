"""A training step of `small` on one CUDA GPU against transformers' Llama of the same shape, in bf16 autocast, in turns.

`make bench-cuda`. The figures, with the card's name, go to benchmarks/cuda/results/CARD.json. Last line:
`cuda_step ratio=R`: our tokens per second over those of transformers.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmcli.api import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.bench import random_rows
from mmcli.train.config import OptimConfig
from mmcli.train.device import Accelerator, make_deterministic
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.optim import build_optimizer
from mmcli.train.speed import product_rates

ROWS, TOKENS, STEPS = 32, 512, 20
CONFIG = ModelConfig(max_seq_len=TOKENS)
GPU = Accelerator(torch.device("cuda"), "bf16")
RESULTS = Path(__file__).parent / "results"


def our_step(*, compiled: bool, optimizer: str) -> Callable[[], None]:
    """One update of our model."""
    make_deterministic()  # as every training of ours
    model = Transformer(CONFIG, seed=0).to(GPU.device)
    update = build_optimizer(model, OptimConfig(optimizer=optimizer), dtype=torch.bfloat16)  # type: ignore[arg-type]
    batch = TokenBatch.from_batch(random_rows(CONFIG.vocab_size, ROWS, TOKENS), CONFIG, pin=True)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with GPU.autocast():
            term = language_model_loss(forward, batch.to(GPU.device), CONFIG).terms["loss"]
        (term.sum / term.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)

    return step


def llama_step(*, compiled: bool) -> Callable[[], None]:
    """One update of transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.use_deterministic_algorithms(False)
    shape = LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.dim,
        intermediate_size=CONFIG.ffn_dim,
        num_hidden_layers=CONFIG.n_layers,
        num_attention_heads=CONFIG.n_heads,
        num_key_value_heads=CONFIG.n_kv_heads,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(shape).to(GPU.device)
    update = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    ids = torch.randint(0, CONFIG.vocab_size, (ROWS, TOKENS), device=GPU.device)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with GPU.autocast():
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad(set_to_none=True)

    return step


def seconds_of(step: Callable[[], None]) -> float:
    """Of one step, the median."""
    found = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA GPU here\n  fix: run it on a machine with one; see: mmcli doctor")
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "mmcli, eager": lambda: our_step(compiled=False, optimizer="adamw"),
        "transformers, eager": lambda: llama_step(compiled=False),
        "mmcli, compiled": lambda: our_step(compiled=True, optimizer="adamw"),
        "transformers, compiled": lambda: llama_step(compiled=True),
        "mmcli, Muon": lambda: our_step(compiled=False, optimizer="muon"),
    }
    rates, memory = {}, {}
    for name, make in makers.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = make()
        for _ in range(3):
            step()  # to warm up, and to compile
        rates[name] = ROWS * TOKENS / seconds_of(step)
        memory[name] = torch.cuda.max_memory_allocated()
        del step
        print(f"{name:>22}  {rates[name]:10,.0f} tokens/s  peak {memory[name] / 1e9:.2f} GB")
    card = torch.cuda.get_device_name()
    flops = dict(product_rates(GPU.device))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', card)}.json"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found = {"card": card, **versions, "tokens_per_second": rates, "peak_bytes": memory, "product_flops": flops}
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {path}")
    print(f"cuda_step ratio={rates['mmcli, eager'] / rates['transformers, eager']:.2f}")


if __name__ == "__main__":
    main()
