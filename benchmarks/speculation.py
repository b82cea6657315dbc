"""Decoding with speculation against decoding without, in turns, one sequence, CPU: the same tokens, in less time.

`small` learns one passage by heart in a minute and writes it over and over, greedy and sampled: that is the text
that repeats, and the smaller of its ratios is in the last line, `speculation ratio=R goal=1.5`. Elsewhere, where
drafts are wrong (a high temperature, random weights, a draft model that knows nothing), the ratio must not be below
0.97. All tokens must be equal.

    python benchmarks/speculation.py --check          # exit 1 below the goal, or below 0.97 elsewhere
    python benchmarks/speculation.py --backend torch
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

GOAL = 1.5
NEVER_BELOW = 0.97
VOCABULARY = 6000
PASSAGE = 24  # tokens
MOST_STEPS, LOSS = 200, 0.05  # it is trained until the passage is known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--dtype", default="fp32", help="of the ONNX export: fp32, fp16, int8 or int4")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit 1 if a ratio is below its goal")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ratios = measure(Path(name), asked)
    repetitive = min(ratio for case, ratio in ratios.items() if case.startswith("repeats"))
    elsewhere = min(ratio for case, ratio in ratios.items() if not case.startswith("repeats"))
    print(f"elsewhere ratio={elsewhere:.2f} goal={NEVER_BELOW:g}")
    print(f"speculation ratio={repetitive:.2f} goal={GOAL:g}")
    return 1 if asked.check and (repetitive < GOAL or elsewhere < NEVER_BELOW) else 0


def measure(place: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Case -> speed with speculation over speed without."""
    from mmcli.api import DraftModel, SamplingConfig

    knows = open_engine(place / "knows", asked, asked.preset, trained=True)
    random = open_engine(place / "random", asked, asked.preset)
    small = open_engine(place / "draft", asked, "tiny")
    passage = random_ids(PASSAGE)
    repeats = [*passage, *passage[:6]]
    greedy = SamplingConfig(temperature=0, repetition_penalty=1)
    sampled = SamplingConfig(temperature=0.7, repetition_penalty=1, seed=3)
    wild = SamplingConfig(temperature=3.0, top_k=0, top_p=1, repetition_penalty=1, seed=5)
    cases: dict[str, tuple[Any, list[int], SamplingConfig, DraftModel | None]] = {
        "repeats, greedy": (knows, repeats, greedy, None),
        "repeats, sampled": (knows, repeats, sampled, None),
        "high temperature": (knows, repeats, wild, None),
        "random weights": (random, repeats, SamplingConfig(temperature=1.0, seed=5), None),
        "useless draft model": (random, repeats, SamplingConfig(temperature=1.0, seed=5), DraftModel(small, random)),
    }
    return {name: ratio(name, *case, asked) for name, case in cases.items()}


def ratio(
    name: str, engine: Any, prompt: list[int], sampling: Any, draft: Any | None, asked: argparse.Namespace
) -> float:
    """Median of the turns, after one that warms up."""
    from mmcli.api import Speculation, generate

    turns: list[float] = []
    for turn in range(asked.repeats + 1):
        speculation = Speculation(engine, draft)  # each turn learns anew
        found = [
            generate(engine, 0, prompt, sampling, max_new_tokens=asked.new_tokens, speculation=each)
            for each in (None, speculation)
        ]
        plain, quick = [list(each) for each in found]
        if plain != quick:
            raise SystemExit(f"{name}: the tokens differ")
        if turn:
            turns.append(found[0].decode_seconds / found[1].decode_seconds)
    drafts = f"{speculation.passes} drafts verified, {speculation.accepted} tokens of them right"
    median = statistics.median(turns)
    spread = f"{min(turns):.2f} to {max(turns):.2f}"
    print(
        f"{name:<20} {median:.2f}  ({spread}; {found[0].tokens_per_second:.0f} tokens/s without; {drafts})", flush=True
    )
    return median


def random_ids(count: int) -> list[int]:
    import numpy as np

    ids: list[int] = np.random.default_rng(0).integers(300, VOCABULARY, count).tolist()
    return ids


def open_engine(folder: Path, asked: argparse.Namespace, preset: str, *, trained: bool = False) -> Any:
    """An engine over random weights, or over those that have learned the passage."""
    import torch

    from mmcli.api import OnnxEngine, TorchEngine, Transformer, export_onnx, model_config, save_model, train_tokenizer

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    model = Transformer(model_config(preset))
    if trained:
        learn(model)
    if asked.backend == "torch":
        return TorchEngine(model)
    save_model(folder, model, model.config, train_tokenizer(["any text"] * 9, vocab_size=300))
    export_onnx(folder, out=folder / "onnx", dtype=asked.dtype)
    return OnnxEngine.load(folder / "onnx", threads=asked.threads)


def learn(model: Any) -> None:
    """Train on the passage, again and again."""
    import numpy as np
    import torch

    from mmcli.api import AttnContext, token_logps

    text = np.array([random_ids(PASSAGE) * 3], dtype=np.int64)
    ids_BT, labels_BT = torch.from_numpy(text[:, :-1]), torch.from_numpy(text[:, 1:])
    places = np.arange(ids_BT.shape[1])[None]
    context = AttnContext.from_batch(places, np.zeros_like(places), "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, MOST_STEPS + 1):
        hidden_BTD, _ = model(ids_BT, context)
        loss = -token_logps(hidden_BTD, model.head_weight, labels_BT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < LOSS or step == MOST_STEPS:
            break
    print(f"{step} steps, loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
