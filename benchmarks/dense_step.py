"""A training step of `small` (8 x 512 tokens) against a plain transformers Llama of the same shape, in turn.

Beside them litgpt's compiled model, where litgpt is installed (pip install litgpt). Last line:
`dense_step ratio=R goal=G`: our tokens per second over those of transformers. The goal is missed, too, where litgpt is
faster or our peak memory is more than half of transformers'. Everything computes in fp32, each in its own process.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from contest import compete, median_ratio, serve
from steps import THREADS, llama, our_step, random_ids, update

from mmcli.api import ModelConfig

GOAL = 1.25
MEMORY_GOAL = 0.5  # of the peak of transformers
ROWS, TOKENS = 8, 512
CONFIG = ModelConfig(max_seq_len=TOKENS)


def llama_step(ids: np.ndarray) -> Callable[[], None]:
    """The same step with transformers' Llama, eager, as its documentation shows it."""
    model = llama(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    inputs = torch.from_numpy(ids[:, :-1].copy())

    def step() -> None:
        model(input_ids=inputs, labels=inputs).loss.backward()
        update(model, optimizer)

    return step


def litgpt_step(ids: np.ndarray) -> Callable[[], None]:
    """The same step with litgpt's model, compiled, its chunked loss and its micro-batches of four rows."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    model = GPT(
        Config(
            block_size=TOKENS,
            vocab_size=CONFIG.vocab_size,
            padded_vocab_size=CONFIG.vocab_size,
            n_layer=CONFIG.n_layers,
            n_head=CONFIG.n_heads,
            n_query_groups=CONFIG.n_kv_heads,
            n_embd=CONFIG.dim,
            intermediate_size=CONFIG.ffn_dim,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    forward = torch.compile(model)
    parts = torch.from_numpy(ids).split(4)

    def step() -> None:
        for part in parts:
            loss = chunked_cross_entropy(forward(part[:, :-1].contiguous()), part[:, 1:].contiguous())
            (loss / len(parts)).backward()
        update(model, optimizer)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["ours", "llama", "litgpt"], help="run only this one, when told to")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    ids = random_ids(ROWS, TOKENS, CONFIG.vocab_size)
    makers = {"ours": lambda: our_step(CONFIG, ids, micro_batch=2), "llama": lambda: llama_step(ids)}
    if importlib.util.find_spec("litgpt") is not None:
        makers["litgpt"] = lambda: litgpt_step(ids)
    if arguments.only:
        serve(makers[arguments.only])
        return
    found = compete(makers, arguments.repeats)
    for name, each in found.items():
        rate = ROWS * TOKENS / statistics.median(each.seconds)
        print(f"{name:>6}  {rate:7.0f} tokens/s  peak {each.peak_mib:,.0f} MiB")
    ours, llama = found["ours"], found["llama"]
    ratio = median_ratio(llama.seconds, ours.seconds)
    memory_share = ours.peak_mib / llama.peak_mib
    print(f"peak memory: {memory_share:.2f} of transformers', goal {MEMORY_GOAL}")
    reached = ratio >= GOAL and memory_share <= MEMORY_GOAL
    if "litgpt" in found:
        ahead = median_ratio(found["litgpt"].seconds, ours.seconds)
        print(f"speed: {ahead:.2f} of litgpt's, goal 1")
        reached = reached and ahead >= 1.0
    print(f"dense_step ratio={ratio:.2f} goal={GOAL}")
    sys.exit(1 if arguments.check and not reached else 0)


if __name__ == "__main__":
    main()
