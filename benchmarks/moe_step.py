"""A training step of `moe` (4 x 512 tokens) against a dense model with as many active parameters, compiled, in turn.

Beside them the same model with a loop over experts as MiniMind writes it, eager. Last line: `moe_step ratio=R goal=G`:
time of the mixture over time of the dense model; lower is better.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from steps import THREADS, in_turn, median_ratio, our_step, random_ids
from torch import Tensor

from mmcli.model import moe
from mmcli.model.config import ModelConfig
from mmcli.model.ffn import activate

GOAL = 1.10
ROWS, TOKENS = 4, 512
SHAPE = {"dim": 640, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "max_seq_len": TOKENS}
MOE = ModelConfig(**SHAPE, use_moe=True)
DENSE = ModelConfig(**SHAPE, hidden_dim=5184)  # two routed and one shared expert of 1728


def expert_loop(self: moe.Experts, x_RD: Tensor, counts_E: Tensor) -> Tensor:
    """The routed experts one after the other, the output filled by indexing."""
    out = torch.zeros_like(x_RD)
    start = 0
    for expert, count in enumerate(counts_E.tolist()):
        rows = slice(start, start + count)
        gate = x_RD[rows] @ self.gate_proj[expert].t()
        up = x_RD[rows] @ self.up_proj[expert].t()
        out[rows] = activate(gate, up, self.config.mlp) @ self.down_proj[expert].t()
        start += count
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the goal is missed")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    ids = random_ids(ROWS, TOKENS, MOE.vocab_size)
    ours, dense = (our_step(config, ids, micro_batch=2) for config in (MOE, DENSE))
    looped = our_step(MOE, ids, micro_batch=2, compiled=False)
    grouped = moe.Experts.forward

    def loop() -> None:
        moe.Experts.forward = expert_loop
        try:
            looped()
        finally:
            moe.Experts.forward = grouped

    seconds = in_turn({"moe": ours, "dense": dense, "loop": loop}, arguments.repeats)
    for name, values in seconds.items():
        share = median_ratio(values, seconds["dense"])
        print(f"{name:>6}  {statistics.median(values):.2f} s a step  {share:.2f} of dense")
    ratio = median_ratio(seconds["moe"], seconds["dense"])
    print(f"moe_step ratio={ratio:.2f} goal={GOAL}")
    sys.exit(1 if arguments.check and ratio > GOAL else 0)


if __name__ == "__main__":
    main()
