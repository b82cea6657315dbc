"""Encoding a corpus to the token cache against the raw rate of `tokenizers.encode_batch` and `datasets.map`.

All three encode the same JSONL file with the same tokenizer, each in its own process, in turns, so that a busy machine
slows all; the ratio is the median over the turns of the cache's rate over that of `encode_batch`, which uses all cores,
is given the texts in memory and writes nothing. The cache reads, checks, encodes, hashes and flushes. `datasets.map`
runs in two processes, as its documentation advises, and writes its cache.

Then the cache is built of 50 MB and of 500 MB, and opened again: peak memory and the seconds of a second start.
The last line is `tokenization ratio=R goal=0.9`.

    python benchmarks/tokenization.py --check          # exit 1 if a goal is missed
    python benchmarks/tokenization.py --data corpus.jsonl --repeats 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from contest import Contestant, compete, median_ratio, serve

GOAL = 0.9
SECOND_START = 1.0  # seconds
MEMORY_GROWTH = 1.15  # of the peak from 50 MB to 500 MB, noise included
WAYS = ("cache", "encode_batch", "datasets.map")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a JSONL file of texts [the built-in corpus]")
    parser.add_argument("--megabytes", type=float, default=50, help="size of the corpus that is made without --data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument("--only", choices=[*WAYS, "once"], help="run only this one, when told to")
    parser.add_argument("--place", type=Path, help="where it works")
    asked = parser.parse_args()
    if asked.only:
        makers = {"cache": cache_way, "encode_batch": batch_way, "datasets.map": map_way, "once": cache_way}
        serve(lambda: makers[asked.only](asked.data, asked.place), warm_up=1)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data = asked.data or write_corpus(place / "corpus.jsonl", asked.megabytes)
        make_tokenizer(data, place)
        size = text_bytes(data)
        found = compete(WAYS, asked.repeats, "--data", str(data), "--place", str(place))
        for way, each in found.items():
            rates = [size / 1e6 / seconds for seconds in each.seconds]
            print(f"{way:<14}{statistics.median(rates):7.2f} MB/s  ({min(rates):.2f} to {max(rates):.2f})")
        ratio = median_ratio(found["encode_batch"].seconds, found["cache"].seconds)
        ahead = median_ratio(found["datasets.map"].seconds, found["cache"].seconds)
        print(f"speed: {ahead:.2f} of datasets.map's, goal 1")
        growth, second = large(place)
        print(f"peak memory of 500 MB: {growth:.2f} of that of 50 MB, goal at most {MEMORY_GROWTH:g}")
        print(f"second start with 500 MB: {second:.3f} s, goal below {SECOND_START:g}")
        missed = ratio < GOAL or ahead < 1.0 or growth > MEMORY_GROWTH or second >= SECOND_START
    print(f"tokenization ratio={ratio:.2f} goal={GOAL:g}")
    return 1 if asked.check and missed else 0


def large(place: Path) -> tuple[float, float]:
    """(peak memory for 500 MB over that for 50 MB, seconds of a second start with 500 MB)."""
    from mmcli.api import TokenCache, Tokenizer, open_sources

    part, whole = write_corpus(place / "50.jsonl", 50), place / "500.jsonl"
    with whole.open("wb") as file:
        for _ in range(10):
            file.write(part.read_bytes())
    time.sleep(2.5)  # files that changed just now are read again
    peaks = []
    for data in (part, whole):
        shutil.rmtree(place / "caches", ignore_errors=True)
        once = Contestant("once", "--data", str(data), "--place", str(place))
        once.stop()
        peaks.append(once.peak_mib)
        print(f"{data.stem} MB: peak memory {once.peak_mib:.0f} MiB")
    start = time.perf_counter()
    cache = TokenCache.build_or_open(
        place / "caches" / "0", open_sources([str(whole)]), Tokenizer.load(place / "tokenizer")
    )
    second = time.perf_counter() - start
    assert len(cache) > 0
    return peaks[1] / peaks[0], second


def write_corpus(path: Path, megabytes: float) -> Path:
    """Documents of the built-in corpus, eight to a record, of other seeds until there is enough."""
    from mmcli.api import Record, open_sources

    with path.open("w", encoding="utf-8") as file:
        for seed in itertools.count():
            records = open_sources(["demo"], seed=seed).records()
            documents = (record.value["text"] for record in records if isinstance(record, Record))
            while group := list(itertools.islice(documents, 8)):
                file.write(json.dumps({"text": "\n\n".join(group)}, ensure_ascii=False) + "\n")
            if file.tell() >= megabytes * 1e6:
                return path
    raise AssertionError("an endless loop ended")


def make_tokenizer(data: Path, place: Path) -> None:
    from mmcli.api import train_tokenizer

    with data.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 2000)]
    train_tokenizer(texts, vocab_size=6400).save(place / "tokenizer")


def text_bytes(data: Path) -> int:
    with data.open(encoding="utf-8") as lines:
        return sum(len(json.loads(line)["text"].encode()) for line in lines)


def cache_way(data: Path, place: Path) -> Callable[[], None]:
    """What a training does, in a folder of its own each turn."""
    from mmcli.api import TokenCache, Tokenizer, open_sources

    tokenizer = Tokenizer.load(place / "tokenizer")
    turns = itertools.count()

    def run() -> None:
        cache = TokenCache.build_or_open(place / "caches" / str(next(turns)), open_sources([str(data)]), tokenizer)
        assert cache.tally.rejected == 0

    return run


def batch_way(data: Path, place: Path) -> Callable[[], None]:
    """The library alone: texts in memory to ids in memory, a thousand at a time, nothing kept."""
    import tokenizers

    raw = tokenizers.Tokenizer.from_file(str(place / "tokenizer" / "tokenizer.json"))
    with data.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]

    def run() -> None:
        for first in range(0, len(texts), 1024):
            for encoded in raw.encode_batch(texts[first : first + 1024], add_special_tokens=False):
                encoded.ids  # noqa: B018  # a list is made of them only when they are asked for

    return run


def map_way(data: Path, place: Path) -> Callable[[], None]:
    """`datasets.map` in two processes, batched, without its cache."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    raw = tokenizers.Tokenizer.from_file(str(place / "tokenizer" / "tokenizer.json"))
    turns = itertools.count()

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [each.ids for each in raw.encode_batch(batch["text"], add_special_tokens=False)]}

    def run() -> None:
        folder = str(place / f"datasets-{next(turns)}")
        loaded = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=folder)
        loaded.map(encode, batched=True, num_proc=2, remove_columns=["text"], load_from_cache_file=False)
        shutil.rmtree(folder)

    return run


if __name__ == "__main__":
    sys.exit(main())
