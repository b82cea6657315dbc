"""Encoding a corpus to the token cache against the raw rate of `tokenizers.encode_batch` and `datasets.map`.

All three encode the same JSONL file with the same tokenizer and threads, in turns, so that a busy machine slows all;
the ratio is the median over the turns of the cache's rate over that of `encode_batch`, which is given the texts in
memory and writes nothing. The cache reads, checks, encodes (by `encode_batch_fast`, which keeps no offsets), hashes and
flushes. `datasets.map` runs in two processes, as its documentation advises. Then a second start opens the finished
cache.
The last line is `tokenize ratio=R goal=0.9`.

    python benchmarks/tokenization.py --check          # exit 1 below the goal, or if a second start takes a second
    python benchmarks/tokenization.py --data corpus.jsonl --repeats 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOAL = 0.9
SECOND_START = 1.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a JSONL file of texts [the built-in corpus]")
    parser.add_argument("--megabytes", type=float, default=8, help="size of the corpus that is made without --data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = asked.data or write_corpus(Path(place) / "corpus.jsonl", asked.megabytes)
        ratio, second = measure(data, Path(place), asked.repeats)
    print(f"second start: {second:.3f} s (goal: below {SECOND_START:g})")
    print(f"tokenize ratio={ratio:.2f} goal={GOAL:g}")
    return 1 if asked.check and (ratio < GOAL or second >= SECOND_START) else 0


def write_corpus(path: Path, megabytes: float) -> Path:
    """Documents of the built-in corpus, eight to a record, of other seeds until there is enough."""
    from mmcli.data import demo

    with path.open("w", encoding="utf-8") as file:
        for seed in itertools.count():
            documents = iter(demo.documents(seed))
            while group := list(itertools.islice(documents, 8)):
                file.write(json.dumps({"text": "\n\n".join(group)}, ensure_ascii=False) + "\n")
            if file.tell() >= megabytes * 1e6:
                return path
    raise AssertionError("an endless loop ended")


def measure(data: Path, place: Path, repeats: int) -> tuple[float, float]:
    """(median ratio of the cache's rate to that of encode_batch, seconds of a second start)."""
    from mmcli.text.train import train_tokenizer

    texts = [json.loads(line)["text"] for line in data.open(encoding="utf-8")]
    tokenizer = train_tokenizer(itertools.islice(texts, 2000), vocab_size=6400)
    tokenizer.save(place / "tokenizer")
    size = sum(len(text.encode()) for text in texts)
    print(f"{data.name}: {len(texts):,} texts, {size / 1e6:.1f} MB")
    ways = {
        "cache": cache_way(data, place, tokenizer),
        "encode_batch": batch_way(texts, place),
        "datasets.map": map_way(data, place),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(turn)
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        rates = [size / 1e6 / each for each in seconds]
        print(f"{name:<14}{statistics.median(rates):7.2f} MB/s  ({min(rates):.2f} to {max(rates):.2f})")
    start = time.perf_counter()
    ways["cache"](repeats)  # the folder of the last turn
    second = time.perf_counter() - start
    ratios = [raw / own for own, raw in zip(times["cache"], times["encode_batch"], strict=True)]
    print(f"ratios of the turns: {', '.join(f'{each:.2f}' for each in ratios)}")
    return statistics.median(ratios), second


def cache_way(data: Path, place: Path, tokenizer: Any) -> Callable[[int], None]:
    """What a training does, in a folder of its own each turn."""
    from mmcli.data.cache import TokenCache
    from mmcli.data.sources import open_sources

    def run(turn: int) -> None:
        cache = TokenCache.build_or_open(place / f"cache-{turn}", open_sources([str(data)]), tokenizer)
        assert cache.tally.rejected == 0

    return run


def batch_way(texts: list[str], place: Path) -> Callable[[int], None]:
    """The library alone: texts in memory to ids in memory, a thousand at a time, nothing kept."""
    import tokenizers

    raw = tokenizers.Tokenizer.from_file(str(place / "tokenizer" / "tokenizer.json"))

    def run(turn: int) -> None:
        for first in range(0, len(texts), 1024):
            for encoded in raw.encode_batch(texts[first : first + 1024], add_special_tokens=False):
                encoded.ids  # noqa: B018  # a list is made of them only when they are asked for

    return run


def map_way(data: Path, place: Path) -> Callable[[int], None]:
    """`datasets.map` in two processes, batched, without its cache."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    raw = tokenizers.Tokenizer.from_file(str(place / "tokenizer" / "tokenizer.json"))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [each.ids for each in raw.encode_batch(batch["text"], add_special_tokens=False)]}

    def run(turn: int) -> None:
        loaded = datasets.load_dataset(
            "json", data_files=str(data), split="train", cache_dir=str(place / f"datasets-{turn}")
        )
        loaded.map(encode, batched=True, num_proc=2, remove_columns=["text"], load_from_cache_file=False)

    return run


if __name__ == "__main__":
    sys.exit(main())
