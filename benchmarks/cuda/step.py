"""A training step on one CUDA GPU, bf16 autocast: `small` against transformers' Llama, and `moe` against a dense model.

Both of `small` (32 x 512 tokens) eager and compiled, ours with Muon too; the mixture (16 x 512 tokens) against a dense
model with as many active parameters. All take turns, several times. `make bench-cuda`; the figures, with the card's
name, go to benchmarks/cuda/results/CARD.json. Last lines: `cuda_step ratio=R`, our tokens per second over those of
transformers, both compiled, and `cuda_moe_step ratio=R`, the time of the mixture over that of the dense model.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from steps import llama, our_step, random_ids, update

from mmcli.api import Accelerator, ModelConfig, make_deterministic

TURNS, STEPS = 4, 10
TOKENS, SMALL_ROWS, MOE_ROWS = 512, 32, 16
SMALL = ModelConfig(max_seq_len=TOKENS)
MOE_SHAPE = {"dim": 640, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "max_seq_len": TOKENS}
MOE = ModelConfig(**MOE_SHAPE, use_moe=True)
DENSE = ModelConfig(**MOE_SHAPE, hidden_dim=5184)  # two routed and one shared expert of 1728
RESULTS = Path(__file__).parent / "results"
Step = Callable[[], None]


def ours(config: ModelConfig, rows: int, *, compiled: bool, optimizer: str = "adamw") -> Step:
    """A step of ours, with deterministic algorithms, as every training of ours."""
    make_deterministic(torch.device("cuda"))
    gpu = Accelerator(torch.device("cuda"), "bf16")
    ids = random_ids(rows, TOKENS, config.vocab_size)
    return our_step(config, ids, micro_batch=rows, compiled=compiled, accelerator=gpu, optimizer=optimizer)


def theirs(*, compiled: bool) -> Step:
    """A step of transformers' Llama."""
    torch.use_deterministic_algorithms(False)
    model = llama(SMALL).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    ids = torch.from_numpy(random_ids(SMALL_ROWS, TOKENS, SMALL.vocab_size)[:, :-1]).to("cuda")
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        update(model, optimizer)

    return step


MAKERS: dict[str, tuple[int, Callable[[], Step]]] = {
    "small, eager": (SMALL_ROWS, lambda: ours(SMALL, SMALL_ROWS, compiled=False)),
    "small, compiled": (SMALL_ROWS, lambda: ours(SMALL, SMALL_ROWS, compiled=True)),
    "small, compiled, Muon": (SMALL_ROWS, lambda: ours(SMALL, SMALL_ROWS, compiled=True, optimizer="muon")),
    "transformers, eager": (SMALL_ROWS, lambda: theirs(compiled=False)),
    "transformers, compiled": (SMALL_ROWS, lambda: theirs(compiled=True)),
    "moe, eager": (MOE_ROWS, lambda: ours(MOE, MOE_ROWS, compiled=False)),
    "moe, compiled": (MOE_ROWS, lambda: ours(MOE, MOE_ROWS, compiled=True)),
    "dense, compiled": (MOE_ROWS, lambda: ours(DENSE, MOE_ROWS, compiled=True)),
}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA GPU here\n  fix: run it on a machine with one; see: mmcli doctor")
    steps: dict[str, Step] = {}
    peak: dict[str, int] = {}
    for name, (_, make) in MAKERS.items():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        steps[name] = make()
        for _ in range(3):
            steps[name]()  # to warm up, and to compile
        peak[name] = torch.cuda.max_memory_allocated() - before
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            torch.use_deterministic_algorithms(not name.startswith("transformers"))
            step()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    rates = {name: MAKERS[name][0] * TOKENS / each for name, each in median.items()}
    for name, rate in rates.items():
        print(f"{name:>22}  {rate:10,.0f} tokens/s  peak {peak[name] / 1e9:.2f} GB")
    card = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found = {"card": card, **versions, "tokens_per_second": rates, "peak_bytes": peak}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', card)}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {path}")
    print(f"cuda_step ratio={rates['small, compiled'] / rates['transformers, compiled']:.2f}")
    print(f"cuda_moe_step ratio={median['moe, compiled'] / median['dense, compiled']:.2f}")


if __name__ == "__main__":
    main()
