"""How long `mmcli pretrain --budget` needs for what a plain AdamW loop over transformers' Llama reaches in a time.

Both train the same shape (256 x 6, 6.1M parameters) with the same tokenizer on the same texts, one in twenty held out.
The peer packs texts into full rows, and has the best of the rates and batch sizes that are tried, each in a process of
its own, with warm-up and a cosine to a tenth that ends when its time does. `--minimind` adds rows of one text each,
padded, 32 x 8 of them a step at a rate of 5e-4, as MiniMind trains. `--preset` takes the shape of a preset, and our
defaults for it. Budgets grow until the peer's held-out loss is reached; the time is that of the run, what it fits
before the first step included. The last line is `time_to_loss ratio=R goal=0.5`: that time over --seconds.

    python benchmarks/time_to_loss.py --data books/ --seconds 120 --check
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GOAL = 0.5
SHARES = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
TOKENS = 512
SHAPE = {"dim": 256, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 6400}
PEERS = ("packed 1e-3 2", "packed 3e-3 2", "packed 1e-3 8")
MINIMIND = "padded 5e-4 256"
HELD_OUT = 20  # one text in so many
SETTINGS = {
    "model.max_seq_len": TOKENS,
    "data.seq_len": TOKENS,
    "data.val_fraction": 0.0,
    "train.sample_every": 1_000_000,
    "train.device": "cpu",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["demo"])
    parser.add_argument("--seconds", type=float, default=120.0, help="of the peer")
    parser.add_argument("--minimind", action="store_true", help="compare with padded rows, too")
    parser.add_argument("--preset", help="a shape of its own; default: 256 x 6")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="configuration of ours")
    parser.add_argument("--check", action="store_true", help="exit 1 if the goal is missed")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        train_peer(asked.peer, asked.place, asked.seconds, asked.preset)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        split(asked.data, place)
        peers = [*PEERS, *([MINIMIND] if asked.minimind else [])]
        losses = {}
        for peer in peers:
            command = [sys.executable, __file__, "--peer", peer, "--place", str(place), "--seconds", str(asked.seconds)]
            command += ["--preset", asked.preset] if asked.preset else []
            subprocess.run(command, check=True)
            losses[peer] = measured(place / "peer", place)
            print(f"{peer:>16}  {asked.seconds:.0f} s  {losses[peer]:.4f} bits per byte", flush=True)
        best = min(loss for peer, loss in losses.items() if peer != MINIMIND)
        ratio, seconds = math.inf, 0.0
        for share in SHARES:
            seconds, loss = train_ours(place, share * asked.seconds, asked.preset, asked.set)
            print(f"{'mmcli':>16}  {seconds:.0f} s  {loss:.4f} bits per byte", flush=True)
            if asked.minimind and loss <= losses[MINIMIND]:
                print(f"padded rows of MiniMind: ratio={seconds / asked.seconds:.3f}")
                asked.minimind = False
            if loss <= best:
                ratio = seconds / asked.seconds
                break
    print(f"time_to_loss ratio={ratio:.3f} goal={GOAL:g}")
    return 1 if asked.check and ratio > GOAL else 0


def split(data: list[str], place: Path) -> None:
    """Texts to train on and held out as files, and the tokenizer of the former."""
    from mmcli.api import Record, open_sources, train_tokenizer

    texts = [each.value["text"] for each in open_sources(data).records() if isinstance(each, Record)]
    held = [text for number, text in enumerate(texts) if number % HELD_OUT == 0]
    kept = [text for number, text in enumerate(texts) if number % HELD_OUT]
    for name, part in (("train.jsonl", kept), ("held.jsonl", held)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        (place / name).write_text("".join(lines), encoding="utf-8")
    train_tokenizer(kept, vocab_size=SHAPE["vocab_size"]).save(place / "tokenizer")


def measured(model: Path, place: Path) -> float:
    """Held-out bits per byte."""
    from mmcli.api import measure_loss

    return measure_loss(model, [str(place / "held.jsonl")], seq_len=TOKENS, device="cpu").loss.bits_per_byte


def train_ours(place: Path, seconds: float, preset: str | None, settings: list[str]) -> tuple[float, float]:
    """(seconds that it took, bits per byte)."""
    given: dict[str, Any] = {**SETTINGS, "data.sources": [str(place / "train.jsonl")]}
    given |= {} if preset else {f"model.{key}": value for key, value in SHAPE.items()}
    given |= {"data.tokenizer": str(place / "tokenizer"), "train.budget": f"{max(1, round(seconds))}s"}
    options = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    command = [sys.executable, "-m", "mmcli", "pretrain", "--json", "--runs-dir", str(place / "runs")]
    command += ["--preset", preset] if preset else []
    for option in (*options, *settings):
        command += ["--set", option]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    result = json.loads(done.stdout)
    return float(result["elapsed_seconds"]), measured(Path(result["path"]) / "model", place)


def train_peer(peer: str, place: Path, seconds: float, preset: str | None) -> None:
    """Train transformers' Llama for a time and save it to `place/peer`."""
    import numpy as np
    import torch
    from steps import llama

    from mmcli.api import ModelConfig, Tokenizer, model_config

    kind, rate, rows = peer.split()
    tokenizer = Tokenizer.load(place / "tokenizer")
    texts = [json.loads(line)["text"] for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = [[*tokenizer.encode_text(text), tokenizer.eos_id] for text in texts]
    if kind == "packed":
        stream = np.concatenate([np.array(each) for each in documents])
        table = stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)
    else:
        table = np.full((len(documents), TOKENS), -1)
        for row, document in zip(table, documents, strict=True):
            row[: len(document)] = document[:TOKENS]
    torch.manual_seed(0)
    model: Any = llama(model_config(preset) if preset else ModelConfig(**SHAPE, max_seq_len=TOKENS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(rate), betas=(0.9, 0.95), weight_decay=0.1)
    draws, started, order = np.random.default_rng(0), time.perf_counter(), np.empty(0, dtype=np.int64)
    at_once = min(int(rows), 8)
    while (share := (time.perf_counter() - started) / seconds) < 1.0:
        if len(order) < int(rows):
            order = np.concatenate([order, draws.permutation(len(table))])
        chosen, order = order[: int(rows)], order[int(rows) :]
        for first in range(0, len(chosen), at_once):
            ids = torch.from_numpy(table[chosen[first : first + at_once]])
            labels = torch.where(ids < 0, -100, ids)
            loss = model(input_ids=ids.clamp(min=0), labels=labels, attention_mask=(ids >= 0).long()).loss
            (loss * len(ids) / len(chosen)).backward()
        for group in optimizer.param_groups:
            factor = min(1.0, (share + 0.002) / 0.02) * (0.1 + 0.45 * (1.0 + math.cos(math.pi * share)))
            group["lr"] = float(rate) * factor
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.save_pretrained(place / "peer")
    tokenizer.save(place / "peer")


if __name__ == "__main__":
    sys.exit(main())
