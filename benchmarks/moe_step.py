"""A training step of `moe` (4 x 512 tokens) against a dense model with as many active parameters, compiled, in turn.

Beside them the mixture with a loop over experts as MiniMind writes it, eager. Last line: `moe_step ratio=R goal=G`:
time of the mixture over time of the dense model; lower is better. Two rows at once, fp32, each in its own process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contest import compete, median_ratio, serve
from steps import THREADS, our_step, random_ids
from torch import Tensor
from torch.nn import functional as F

from mmcli.api import ModelConfig, Transformer

GOAL = 1.05
ROWS, TOKENS, AT_ONCE = 4, 512, 2
SHAPE = {"dim": 640, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "max_seq_len": TOKENS}
MOE = ModelConfig(**SHAPE, use_moe=True)
DENSE = ModelConfig(**SHAPE, hidden_dim=5184)  # two routed and one shared expert of 1728


def expert_loop(self: Any, x_RD: Tensor, counts_E: Tensor) -> Tensor:
    """The routed experts one after the other, the output filled by indexing."""
    out = torch.zeros_like(x_RD)
    start = 0
    for expert, count in enumerate(counts_E.tolist()):
        rows = slice(start, start + count)
        gate = x_RD[rows] @ self.gate_proj[expert].t()
        up = x_RD[rows] @ self.up_proj[expert].t()
        out[rows] = (F.silu(gate) * up) @ self.down_proj[expert].t()
        start += count
    return out


def loop_step(ids: np.ndarray) -> Callable[[], None]:
    """The step of the mixture with that loop."""
    with torch.device("meta"):
        experts = type(Transformer(MOE).model.layers[0].mlp.experts)
    experts.forward = expert_loop
    return our_step(MOE, ids, micro_batch=AT_ONCE, compiled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["moe", "dense", "loop"], help="run only this one, when told to")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    ids = random_ids(ROWS, TOKENS, MOE.vocab_size)
    makers = {
        "moe": lambda: our_step(MOE, ids, micro_batch=AT_ONCE),
        "dense": lambda: our_step(DENSE, ids, micro_batch=AT_ONCE),
        "loop": lambda: loop_step(ids),
    }
    if arguments.only:
        serve(makers[arguments.only])
        return
    found = compete(makers, arguments.repeats)
    for name, each in found.items():
        share = median_ratio(each.seconds, found["dense"].seconds)
        print(f"{name:>6}  {statistics.median(each.seconds):.2f} s a step  {share:.2f} of dense")
    ratio = median_ratio(found["moe"].seconds, found["dense"].seconds)
    print(f"moe_step ratio={ratio:.2f} goal={GOAL}")
    sys.exit(1 if arguments.check and ratio > GOAL else 0)


if __name__ == "__main__":
    main()
