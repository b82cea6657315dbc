"""Rollouts of `mmcli grpo` against transformers' `generate`: the same model, prompts and lengths of replies, CPU.

Replies end where they end: their lengths are drawn from an exponential distribution, cut at `--new-tokens`, the same
for both. `generate` runs one batch until the longest has ended; the engine gives a slot to the next reply. Both draw at
temperature 1 without top-k and top-p, in turns, so that a busy machine slows both; the ratio is the median over the
turns. Tokens of replies are counted, prefill takes part in the time. The last line is `grpo ratio=R goal=5`.

    python benchmarks/grpo.py --check          # exit 1 below the goal
    python benchmarks/grpo.py --preset small --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GOAL = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="a dense shape that transformers knows")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--mean-tokens", type=float, default=24.0, help="of a reply, before the cut")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a reply, at most")
    parser.add_argument("--slots", type=int, default=64, help="replies that the engine writes at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true", help="exit 1 if the ratio is below the goal")
    asked = parser.parse_args()
    ratios = measure(asked)
    ratio = statistics.median(ratios)
    print(f"ratios of the turns: {', '.join(f'{each:.2f}' for each in ratios)}")
    print(f"grpo ratio={ratio:.2f} goal={GOAL:g}")
    return 1 if asked.check and ratio < GOAL else 0


def measure(asked: argparse.Namespace) -> list[float]:
    """Speed of the engine over that of transformers, in each turn."""
    import numpy as np
    import torch

    torch.set_num_threads(asked.threads)
    drawn = np.random.default_rng(0).integers(16, 2000, (asked.prompts, asked.prompt_tokens)).tolist()
    prompts = [ids for ids in drawn for _ in range(asked.group_size)]
    drawn_lengths = np.random.default_rng(1).exponential(asked.mean_tokens, len(prompts))
    lengths = np.clip(np.ceil(drawn_lengths), 1, asked.new_tokens).astype(int).tolist()
    tokens = sum(lengths)
    with tempfile.TemporaryDirectory() as place:
        save(asked.preset, Path(place))
        names = {
            "mmcli": engine_writer(Path(place), prompts, lengths, asked),
            "transformers": transformers_writer(Path(place), prompts, lengths),
        }
        rates: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(asked.repeats + 1):
            for name, write in names.items():
                start = time.perf_counter()
                written = write()
                if written != tokens:
                    raise SystemExit(f"{name} wrote {written} tokens, not {tokens}")
                if turn:  # the first one warms up
                    rates[name].append(tokens / (time.perf_counter() - start))
    mean = tokens / len(prompts)
    print(
        f"{asked.preset}, {asked.prompts} prompts x {asked.group_size}, {asked.prompt_tokens} + {mean:.0f} "
        f"tokens (at most {max(lengths)}), {asked.threads} threads"
    )
    for name, values in rates.items():
        print(f"{name:<14}{statistics.median(values):8.0f} tokens/s  ({min(values):.0f} to {max(values):.0f})")
    return [a / b for a, b in zip(rates["mmcli"], rates["transformers"], strict=True)]


def save(preset: str, folder: Path) -> None:
    """A model folder with random weights."""
    from mmcli.api import Transformer, model_config, save_model, train_tokenizer

    model = Transformer(model_config(preset))
    save_model(folder, model, model.config, train_tokenizer(["any text"] * 9, vocab_size=300))


def engine_writer(
    folder: Path, prompts: list[list[int]], lengths: list[int], asked: argparse.Namespace
) -> Callable[[], int]:
    """What a step of `mmcli grpo` does: an engine over the weights, every reply with a seed of its own."""
    from mmcli.api import SamplingConfig, TokenSequence, TorchEngine, load_model, run_sequences

    model = load_model(folder)
    most = asked.prompt_tokens + asked.new_tokens

    def write() -> int:
        engine = TorchEngine(model, slots=min(asked.slots, len(prompts)), max_len=most)
        sequences = (
            (
                number,
                TokenSequence(
                    ids,
                    SamplingConfig(temperature=1, top_k=0, top_p=1, repetition_penalty=1, seed=number),
                    max_new_tokens=lengths[number],
                    max_len=most,
                ),
            )
            for number, ids in enumerate(prompts)
        )
        return sum(sequence.tokens for _, sequence in run_sequences(engine, sequences))

    return write


def transformers_writer(folder: Path, prompts: list[list[int]], lengths: list[int]) -> Callable[[], int]:
    """transformers' `generate` as trl calls it without vLLM: all replies in one batch."""
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteriaList

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"max_new_tokens": max(lengths), "pad_token_id": 0}
    options |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    ids_BT, lengths_B = torch.tensor(prompts), torch.tensor(lengths)

    def ended(ids_BT: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
        return ids_BT.shape[1] - len(prompts[0]) >= lengths_B

    @torch.inference_mode()
    def write() -> int:
        out_BT = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([ended]),
            **options,
        )
        width = out_BT.shape[1] - ids_BT.shape[1]
        return int(lengths_B.clamp(max=width).sum())

    return write


if __name__ == "__main__":
    sys.exit(main())
