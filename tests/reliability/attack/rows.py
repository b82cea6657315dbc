"""Mutated records: bytes cut, doubled, moved or replaced by noise, and values of other types."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from attack.trials import Trial
from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

NOISE = [
    b"\0",
    b"\xff",
    b"\xc0\xaf",
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\r",
    b"null",
    b"1e999",
    b"\xef\xbb\xbf",
]
Q = {"from": "human", "value": "q"}
VALUES = [
    {"text": 'A text with "quotes", a \\ and more.\nIn two lines, 中文 too.'},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [Q, {"from": "gpt", "value": "a"}], "tools": '[{"name": "f"}]'},
    {"instruction": "do", "input": "it", "output": "done", "history": [["a", "b"]]},
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"conversations": [Q], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
]


def mutated(line: bytes, pick: random.Random) -> bytes:
    """One to three random edits: bytes cut, doubled, replaced, moved or mixed with noise; never a line end."""
    for _ in range(pick.randrange(1, 4)):
        a, b = sorted((pick.randrange(len(line) + 1), pick.randrange(len(line) + 1)))
        b = min(b, a + 20)
        middle = pick.choice([b"", line[a:b] * 2, pick.choice(NOISE), bytes([pick.randrange(256)]), line[a:b][::-1]])
        line = line[:a] + middle + line[b:] or b"x"
    return line.replace(b"\n", b" ")


def swapped(value: object, pick: random.Random) -> object:
    """A record of the right syntax in which one part has another type."""
    if pick.random() < 0.25:
        return pick.choice([None, 5, -1.5, True, "", " ", [], {}, ["x"], {"a": 1}, [[]], "assistant"])
    if isinstance(value, dict) and value:
        key = pick.choice(list(value))
        return {**value, key: swapped(value[key], pick)}
    if isinstance(value, list) and value:
        at = pick.randrange(len(value))
        return [*value[:at], swapped(value[at], pick), *value[at + 1 :]]
    return value


KINDS = {"text": VALUES[:1], "chat": VALUES[1:4], "preference": VALUES[4:]}


def rows(folder: Path, count: int, seed: int = 0) -> Iterator[Trial]:
    """Rows of each kind, mutated, in files of 100: each is kept or rejected with its line, and none is lost."""
    pick = random.Random(seed)
    tokenizer = train_tokenizer(["a text to learn from"], vocab_size=300)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count // 100):
        kind = list(KINDS)[number % len(KINDS)]
        yield from _rows_of_a_file(folder / f"{number}.jsonl", kind, tokenizer, pick)


def _rows_of_a_file(path: Path, kind: str, tokenizer: Tokenizer, pick: random.Random) -> Iterator[Trial]:
    lines = [json.dumps(KINDS[kind][0]).encode()]
    for _ in range(99):
        value = pick.choice(KINDS[kind])
        if pick.random() < 0.5:
            lines.append(mutated(json.dumps(value, ensure_ascii=pick.random() < 0.5).encode(), pick))
        else:
            lines.append(json.dumps(swapped(value, pick)).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")
    total = sum(bool(line.decode("utf-8", "replace").strip()) for line in lines)
    quarantine = path.with_suffix(".rejected")
    sources = open_sources([str(path)], kind=kind)
    cache = TokenCache.build_or_open(path.parent / "cache", sources, tokenizer, quarantine=quarantine)
    tally = cache.tally
    entries = quarantine.read_text(encoding="utf-8").splitlines() if quarantine.exists() else []
    problem = None
    if not tally.kept + tally.rejected == tally.total == total:
        problem = f"{tally.kept} kept and {tally.rejected} rejected of {total}"
    elif len({json.loads(entry)["line"] for entry in entries}) != tally.rejected:
        problem = f"{len(entries)} lines in quarantine, {tally.rejected} rejected"
    yield from (Trial(f"{path.name} ({kind})", "kept", problem) for _ in range(tally.kept))
    yield from (Trial(f"{path.name} ({kind})", "rejected with its line", problem) for _ in range(tally.rejected))
    yield from (Trial(f"{path.name} ({kind})", "blank") for _ in range(len(lines) - total))
