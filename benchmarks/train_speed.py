"""Useful tokens per second of a training step of `small`, against a loop that pads, and against that loop on our rows.

The padding loop is MiniMind's: one text a row, cut or padded to 512 tokens, here over transformers' Llama of the same
shape. Useful are the tokens that are predicted. All contestants compute 8 rows of 512 in fp32, taking turns, each in a
process of its own. Texts that are short beside 512 tokens gain most, so the figure is one of the data. The last line is
`train_speed ratio=R goal=G`: our useful tokens per second over those of the padding loop. The goal, 1.8 unless --goal
says otherwise, is missed, too, where the same loop on our rows is closer than 1.25.

    python benchmarks/train_speed.py --data news.txt --goal 4 --check
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contest import compete, median_ratio, serve
from steps import CPU, THREADS, llama, update

from mmcli.api import (
    Batch,
    ModelConfig,
    OptimConfig,
    Record,
    TokenBatch,
    Transformer,
    build_optimizer,
    keep_freed_memory,
    language_model_loss,
    open_sources,
    train_tokenizer,
)

ROWS, TOKENS, MICRO_BATCH = 8, 512, 2
PACKED_GOAL = 1.25
CONFIG = ModelConfig(max_seq_len=TOKENS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["demo"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--goal", type=float, default=1.8)
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["ours", "padded", "packed"], help="run only this one, when told to")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    if asked.only:
        serve({"ours": our_step, "padded": padded_step, "packed": packed_step}[asked.only](asked.place), warm_up=1)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        useful = prepare(asked.data, place)
        found = compete(["ours", "padded", "packed"], asked.repeats, "--place", name)
    for each, contestant in found.items():
        rate = useful[each] / statistics.median(contestant.seconds)
        print(f"{each:>6}  {rate:7.0f} useful tokens/s  ({useful[each]:,} of {ROWS * TOKENS:,} places)")
    padded, packed = (
        median_ratio(found[each].seconds, found["ours"].seconds) * useful["ours"] / useful[each]
        for each in ("padded", "packed")
    )
    print(f"the same loop on packed rows: ratio={packed:.2f} goal={PACKED_GOAL}")
    print(f"train_speed ratio={padded:.2f} goal={asked.goal:g}")
    return 1 if asked.check and (padded < asked.goal or packed < PACKED_GOAL) else 0


def prepare(data: list[str], place: Path) -> dict[str, int]:
    """Rows of both kinds in files; the useful tokens of each contestant's step."""
    texts = [each.value["text"] for each in open_sources(data).records() if isinstance(each, Record)]
    tokenizer = train_tokenizer(texts, vocab_size=CONFIG.vocab_size)
    order = np.random.default_rng(0).permutation(len(texts))
    documents = [np.array([*tokenizer.encode_text(texts[i]), tokenizer.eos_id]) for i in order[:4000]]
    lengths = np.array([min(len(each), TOKENS) for each in documents])
    # Rows whose lengths are typical: the documents in the middle of evenly cut sorted ones.
    chosen = np.argsort(lengths, kind="stable")[(np.arange(ROWS) * 2 + 1) * len(lengths) // (2 * ROWS)]
    padded = np.full((ROWS, TOKENS), -1)
    for row, which in zip(padded, chosen, strict=True):
        row[: lengths[which]] = documents[which][:TOKENS]
    stream = np.concatenate(documents)
    segments = np.repeat(np.arange(len(documents)), [len(each) for each in documents])
    size = ROWS * TOKENS
    ids, owners = (each[: size + 1] for each in (stream, segments))
    np.savez(place / "rows.npz", padded=padded, ids=ids, owners=owners)
    predicted = int((owners[1:] == owners[:-1]).sum())
    return {"ours": predicted, "packed": predicted, "padded": int((padded[:, 1:] >= 0).sum())}


def our_step(place: Path) -> Callable[[], Callable[[], None]]:
    """Our model on packed rows, as the loop trains it."""

    def make() -> Callable[[], None]:
        keep_freed_memory()
        rows = np.load(place / "rows.npz")
        inputs, owners = rows["ids"][:-1].reshape(ROWS, TOKENS), rows["owners"][:-1].reshape(ROWS, TOKENS)
        labels = np.where(rows["owners"][1:] == rows["owners"][:-1], rows["ids"][1:], -100).reshape(ROWS, TOKENS)
        starts = np.ones_like(owners, dtype=bool)
        starts[:, 1:] = owners[:, 1:] != owners[:, :-1]
        places = np.arange(TOKENS) - np.maximum.accumulate(np.where(starts, np.arange(TOKENS), 0), axis=1)
        model = Transformer(CONFIG)
        optimizer = build_optimizer(model, OptimConfig())
        forward = torch.compile(model, dynamic=False)
        batches = [
            TokenBatch.from_batch(
                Batch(*(each[i : i + MICRO_BATCH] for each in (inputs, labels, places, owners))), CONFIG
            )
            for i in range(0, ROWS, MICRO_BATCH)
        ]
        total = sum(batch.counts["loss"] for batch in batches)

        def step() -> None:
            for batch in batches:
                (language_model_loss(forward, batch.to(CPU.device), CONFIG).terms["loss"].sum / total).backward()
            update(model, optimizer)

        return step

    return make


def padded_step(place: Path) -> Callable[[], Callable[[], None]]:
    """transformers' Llama on one text a row."""
    return lambda: _llama_step(torch.from_numpy(np.load(place / "rows.npz")["padded"]))


def packed_step(place: Path) -> Callable[[], Callable[[], None]]:
    """transformers' Llama on full rows, whose texts see each other."""
    return lambda: _llama_step(torch.from_numpy(np.load(place / "rows.npz")["ids"][:-1].reshape(ROWS, TOKENS)))


def _llama_step(ids_BT: torch.Tensor) -> Callable[[], None]:
    model = llama(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    given = {"input_ids": ids_BT.clamp(min=0), "labels": torch.where(ids_BT < 0, -100, ids_BT)}
    if bool((ids_BT < 0).any()):
        given["attention_mask"] = (ids_BT >= 0).long()

    def step() -> None:
        model(**given).loss.backward()
        update(model, optimizer)

    return step


if __name__ == "__main__":
    sys.exit(main())
