"""A training step of `small` (8 x 512 tokens) against a plain transformers Llama of the same shape, in turn.

Last line: `dense_step ratio=R goal=G`: our tokens per second over theirs. Peak memory is measured in processes of
their own (`--memory`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from steps import THREADS, in_turn, median_ratio, our_step, peak_memory_mib, random_ids

from mmcli.model.config import ModelConfig

GOAL = 1.15
ROWS, TOKENS = 8, 512
CONFIG = ModelConfig(max_seq_len=TOKENS)


def llama_step(ids: np.ndarray) -> Callable[[], None]:
    """The same step with transformers' Llama, eager, as its documentation shows it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
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
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    inputs = torch.from_numpy(ids[:, :-1].copy())

    def step() -> None:
        model(input_ids=inputs, labels=inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", choices=["ours", "llama"], help="only print the peak memory of one of them")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    ids = random_ids(ROWS, TOKENS, CONFIG.vocab_size)
    makers = {"ours": lambda: our_step(CONFIG, ids, micro_batch=2), "llama": lambda: llama_step(ids)}
    if arguments.memory:
        step = makers[arguments.memory]()
        step()
        step()
        print(f"{peak_memory_mib():.0f}")
        return
    seconds = in_turn({name: make() for name, make in makers.items()}, arguments.repeats)
    for name, values in seconds.items():
        memory = subprocess.run(
            [sys.executable, __file__, "--memory", name], capture_output=True, text=True, check=True
        )
        rate = ROWS * TOKENS / statistics.median(values)
        print(f"{name:>6}  {rate:7.0f} tokens/s  peak {int(memory.stdout.split()[-1]):,} MiB")
    ratio = median_ratio(seconds["llama"], seconds["ours"])
    print(f"dense_step ratio={ratio:.2f} goal={GOAL}")
    sys.exit(1 if arguments.check and ratio < GOAL else 0)


if __name__ == "__main__":
    main()
