"""Decoding with ONNX Runtime against transformers' `generate`: `small`, random weights, fp32, one sequence, CPU.

Both write the same greedy tokens after the same prompt, in turns, so that a busy machine slows both; the ratio is the
median over the turns. The last line is `decode ratio=R goal=3`.

    python benchmarks/decode.py --check          # exit 1 below the goal
    python benchmarks/decode.py --threads 1
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

EXPORT = "onnx"  # folder of the export inside the model folder
GOAL = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="a dense shape that transformers knows")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true", help="exit 1 if the ratio is below the goal")
    asked = parser.parse_args()
    ratios = measure(asked.preset, asked.prompt_tokens, asked.new_tokens, asked.repeats, asked.threads)
    ratio = statistics.median(ratios)
    print(f"ratios of the turns: {', '.join(f'{each:.2f}' for each in ratios)}")
    print(f"decode ratio={ratio:.2f} goal={GOAL:g}")
    return 1 if asked.check and ratio < GOAL else 0


def measure(preset: str, prompt_tokens: int, new_tokens: int, repeats: int, threads: int) -> list[float]:
    """Speed of ONNX Runtime over that of transformers, in each turn."""
    import numpy as np

    prompt = np.random.default_rng(0).integers(0, 6000, prompt_tokens).tolist()
    with tempfile.TemporaryDirectory() as place:
        export(preset, Path(place))
        by_onnx = onnx_writer(Path(place), new_tokens, threads)
        by_transformers = transformers_writer(Path(place), new_tokens, threads)
    names = {"onnx": by_onnx, "transformers": by_transformers}
    expected = by_transformers(prompt)
    found = by_onnx(prompt)  # the first run of both warms up
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    print(f"{preset}, {prompt_tokens} + {new_tokens} tokens, {threads} threads; {same} of {new_tokens} tokens equal")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, write in names.items():
            start = time.perf_counter()
            write(prompt)
            rates[name].append(new_tokens / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name:<14}{statistics.median(values):8.1f} tokens/s  ({min(values):.1f} to {max(values):.1f})")
    return [a / b for a, b in zip(rates["onnx"], rates["transformers"], strict=True)]


def export(preset: str, folder: Path) -> None:
    """A model folder with random weights, and its ONNX export inside."""
    from mmcli.api import Transformer, export_onnx, model_config, save_model, train_tokenizer

    model = Transformer(model_config(preset))
    save_model(folder, model, model.config, train_tokenizer(["any text"] * 9, vocab_size=300))
    export_onnx(folder, out=folder / EXPORT)


def onnx_writer(folder: Path, new_tokens: int, threads: int) -> Callable[[list[int]], list[int]]:
    """What `mmcli chat --backend onnx` does at temperature 0."""
    from mmcli.api import OnnxEngine, SamplingConfig, generate

    engine = OnnxEngine.load(folder / EXPORT, threads=threads)
    greedy = SamplingConfig(temperature=0, repetition_penalty=1)
    return lambda prompt: list(generate(engine, 0, prompt, greedy, max_new_tokens=new_tokens))


def transformers_writer(folder: Path, new_tokens: int, threads: int) -> Callable[[list[int]], list[int]]:
    """transformers' `generate` as its documentation calls it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

    @torch.inference_mode()
    def write(prompt: list[int]) -> list[int]:
        ids_BT = torch.tensor([prompt])
        out_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), eos_token_id=None, **options)
        return [int(id) for id in out_BT[0, len(prompt) :]]

    return write


if __name__ == "__main__":
    sys.exit(main())
