"""The token cache under kill and race: whole or absent, one for all, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

# A builder that says when it encodes, then waits for the file `go` before each further batch.
BUILDER = """
import sys, time
from pathlib import Path
from mmcli.data.encode import cache, encoders
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer

folder = Path(sys.argv[1])
encoders.BATCH_RECORDS = 50

def held(tokenizer, records, options):
    print("encoding", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.005)
    return encode(tokenizer, records, options)

encode = encoders.encode_documents
held.__module__, held.__qualname__ = encode.__module__, encode.__qualname__
encoders.encode_documents = held
made = cache.TokenCache.build_or_open(folder / "cache", open_sources([str(folder / "a.jsonl")]), Tokenizer.load(folder))
print(made.key, made.tokens, (made.folder / "tokens.bin").stat().st_ino, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer(["a text to learn from"], vocab_size=300).save(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i} " * 20}) + "\n" for i in range(500)))
    return tmp_path


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", BUILDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "encoding\n"
    return process


def last_line(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.splitlines()[-1]


def build(folder: Path) -> TokenCache:
    sources = open_sources([str(folder / "a.jsonl")])
    return TokenCache.build_or_open(folder / "cache", sources, Tokenizer.load(folder))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").iterdir())


def test_two_builders_at_once_share_one_cache(folder: Path) -> None:
    builders = [start(folder), start(folder)]  # both are inside the build
    assert len([name for name in names(folder) if name.endswith(".lock")]) == 2
    (folder / "go").touch()
    first, second = (last_line(builder) for builder in builders)
    assert first == second  # the same key, tokens and file
    cache = build(folder)
    assert names(folder) == [cache.key]
    assert first.split()[:2] == [cache.key, str(cache.tokens)]


@pytest.mark.parametrize("after", [0.0, 0.02])
def test_killed_builder_leaves_no_cache_and_its_rest_is_swept(folder: Path, after: float) -> None:
    builder = start(folder)
    if after:
        (folder / "go").touch()
        time.sleep(after)  # somewhere between the first batch and the end
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=60)
    assert builder.returncode == -signal.SIGKILL
    left = names(folder)
    cache = build(folder)
    assert cache.tally.kept == 500
    assert names(folder) == [cache.key] or left == [cache.key]
    if not after:
        assert len(left) == 2  # the lock and the folder
    fresh = folder / "fresh"
    sources = open_sources([str(folder / "a.jsonl")])
    again = TokenCache.build_or_open(fresh, sources, Tokenizer.load(folder))
    for name in ("tokens.bin", "offsets.bin", "hashes.bin"):
        assert (cache.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_running_builder_is_not_swept(folder: Path) -> None:
    builder = start(folder)
    cache = build(folder)  # finds the other's lock held, and is done first
    assert len(names(folder)) == 3
    inode = (cache.folder / "tokens.bin").stat().st_ino
    (folder / "go").touch()
    assert last_line(builder) == f"{cache.key} {cache.tokens} {inode}"
    assert names(folder) == [cache.key]
