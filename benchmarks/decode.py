"""Decoding with ONNX Runtime against llama.cpp, onnxruntime-genai and transformers: random weights, one sequence, CPU.

All write greedy tokens after the same prompt, in turns, so that a busy machine slows all; a ratio is the median over
the turns. `small` in fp32, int8 and int4 meets llama.cpp with the same weights in F32, Q8_0 and Q4_0, onnxruntime-genai
on the same file, and transformers' `generate`. `moe` meets a dense model of its width with as many active parameters.
The last line is `decode ratio=R goal=G`, of the case that is furthest from its goal.

    python benchmarks/decode.py --check          # exit 1 where a goal is missed
    python benchmarks/decode.py --threads 1 --only fp32
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from pathlib import Path

from peers import (
    Writer,
    Written,
    genai_writer,
    llama_writer,
    make_gguf,
    make_model,
    make_onnx,
    median_of_turns,
    onnx_writer,
    open_place,
    random_prompt,
    take_turns,
    transformers_writer,
    verdict,
)

PEERS = {"fp32": "f32", "int8": "q8_0", "int4": "q4_0"}  # of llama.cpp
GOALS = {
    ("onnx fp32", "llama.cpp f32"): 1.05,
    ("onnx int8", "llama.cpp q8_0"): 1.10,
    ("onnx int4", "llama.cpp q4_0"): 1.0,
    ("onnx fp32", "genai fp32"): 1.0,
    ("onnx int8", "genai int8"): 1.0,
    ("onnx int4", "genai int4"): 1.0,
    ("onnx fp32", "transformers"): 4.0,
    ("onnx int4", "transformers"): 12.0,
    ("moe int8", "dense int8"): 0.85,
    ("moe int4", "dense int4"): 0.85,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=(*PEERS, "moe"), help="one dtype of `small`, or the mixture of experts alone")
    parser.add_argument("--place", type=Path, help="folder of the models, kept for the next time; default: temporary")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio is below its goal")
    asked = parser.parse_args()
    found: dict[str, list[Written]] = {}
    prompt = random_prompt(asked.prompt_tokens)
    with open_place(asked.place) as place:
        if asked.only != "moe":
            dtypes = (asked.only,) if asked.only else tuple(PEERS)
            found |= take_turns(small_writers(place, dtypes, asked.threads), prompt, asked.new_tokens, asked.repeats)
        if asked.only in (None, "moe"):
            found |= take_turns(moe_writers(place, asked.threads), prompt, asked.new_tokens, asked.repeats)
    print(f"{asked.prompt_tokens} + {asked.new_tokens} tokens, {asked.threads} threads, tokens/s after the first")
    rates = {name: [each.tokens_per_second for each in turns] for name, turns in found.items()}
    for name, values in rates.items():
        print(f"{name:<16}{statistics.median(values):8.1f}  ({min(values):.1f} to {max(values):.1f})")
    for peer in ("llama.cpp f32", "genai fp32", "transformers"):
        if peer in found:
            same = sum(a == b for a, b in zip(found["onnx fp32"][0].ids, found[peer][0].ids, strict=True))
            print(f"onnx fp32 and {peer}: {same} of {asked.new_tokens} tokens equal")
    ratios = {
        f"{one} over {other}": (median_of_turns(rates[one], rates[other]), goal)
        for (one, other), goal in GOALS.items()
        if one in rates and other in rates
    }
    return 0 if verdict("decode", ratios) or not asked.check else 1


def small_writers(place: Path, dtypes: tuple[str, ...], threads: int) -> dict[str, Writer]:
    """`small` by everyone."""
    from mmcli.api import model_config

    model = make_model(place / "small", model_config("small"))
    writers = {"transformers": transformers_writer(model, threads)}
    for dtype in dtypes:
        folder, file = make_onnx(model, dtype), make_gguf(model, PEERS[dtype])
        writers[f"onnx {dtype}"] = onnx_writer(folder, threads)
        writers[f"llama.cpp {PEERS[dtype]}"] = llama_writer(file, threads)
        writers[f"genai {dtype}"] = genai_writer(folder, threads)
    return writers


def moe_writers(place: Path, threads: int) -> dict[str, Writer]:
    """`moe`, and a dense model whose FFN is as wide as those that a token of it passes."""
    from mmcli.api import model_config

    moe = model_config("moe")
    width = moe.ffn_dim * (moe.num_experts_per_tok + moe.n_shared_experts)
    models = {
        "moe": make_model(place / "moe", moe),
        "dense": make_model(place / "dense", dataclasses.replace(moe, use_moe=False, hidden_dim=width)),
    }
    return {
        f"{name} {dtype}": onnx_writer(make_onnx(model, dtype), threads)
        for dtype in ("int8", "int4")
        for name, model in models.items()
    }


if __name__ == "__main__":
    sys.exit(main())
