"""The time to the first token after a prompt, with ONNX Runtime against llama.cpp: `small`, random weights, CPU.

In turns, the same weights in fp32 and F32, int8 and Q8_0, int4 and Q4_0; a ratio is the median over the turns of our
time over theirs. The last line is `first token ratio=R goal=G`, of the case that is furthest from its goal.

    python benchmarks/first_token.py --check          # exit 1 where a goal is missed
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from peers import (
    llama_writer,
    make_gguf,
    make_model,
    make_onnx,
    median_of_turns,
    onnx_writer,
    open_place,
    random_prompt,
    take_turns,
    verdict,
)

GOALS = {"fp32": ("f32", 0.9), "int8": ("q8_0", 1.0), "int4": ("q4_0", 1.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--place", type=Path, help="folder of the models, kept for the next time; default: temporary")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio is below its goal")
    asked = parser.parse_args()
    from mmcli.api import model_config

    with open_place(asked.place) as place:
        model = make_model(place / "small", model_config("small"))
        writers = {}
        for dtype, (peer, _) in GOALS.items():
            writers[dtype] = onnx_writer(make_onnx(model, dtype), asked.threads)
            writers[peer] = llama_writer(make_gguf(model, peer), asked.threads)
        found = take_turns(writers, random_prompt(asked.prompt_tokens), 1, asked.repeats)
    seconds = {name: [each.first_seconds for each in turns] for name, turns in found.items()}
    print(f"first token after {asked.prompt_tokens}, {asked.threads} threads")
    for name, values in seconds.items():
        milliseconds = [value * 1000 for value in values]
        low, high = min(milliseconds), max(milliseconds)
        print(f"{name:<8}{statistics.median(milliseconds):8.1f} ms  ({low:.1f} to {high:.1f})")
    ratios = {
        f"onnx {dtype} over llama.cpp {peer}": (median_of_turns(seconds[dtype], seconds[peer]), goal)
        for dtype, (peer, goal) in GOALS.items()
    }
    return 0 if verdict("first token", ratios, at_most=True) or not asked.check else 1


if __name__ == "__main__":
    sys.exit(main())
