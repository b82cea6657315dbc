from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mmcli.data.encode.encoders
from mmcli.data.encode.cache import TokenCache
from mmcli.data.encode.workers import EncoderPool
from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.data.records.kinds import dump_kinds, find_kind
from mmcli.data.sources.sources import open_sources
from mmcli.errors import MmcliError, UserError
from mmcli.text.definition import Definition
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

TURNS = {"messages": [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "fine"}]}
VALUES: dict[str, list[Any]] = {
    "text": [{"text": "a text to learn from"}, {"text": " "}, {"text": "another"}],
    "chat": [TURNS, {"messages": []}, {**TURNS, "messages": TURNS["messages"] * 2}],
    "preference": [{"prompt": "how", "chosen": "so", "rejected": "no"}, {"prompt": "how", "chosen": 1}],
}

KINDS = dump_kinds() or b""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a text to learn from, and how you are"], vocab_size=320)


def records(kind: str) -> list[Record]:
    return [Record("a.jsonl", line, value) for line, value in enumerate(VALUES[kind], 1)]


def plain(result: EncodedRecord | RecordError) -> object:
    if isinstance(result, RecordError):
        return str(result)
    trained = None if result.trained is None else [[bool(flag) for flag in flags] for flags in result.trained]
    return [list(ids) for ids in result.ids], trained, result.text_bytes


@pytest.mark.parametrize("kind", list(VALUES))
def test_workers_encode_as_this_process_does(kind: str, tokenizer: Tokenizer) -> None:
    options = {"train_on": "last"} if kind == "chat" else {}
    expected = [plain(each) for each in find_kind(kind).encoder(tokenizer, records(kind), options)]
    assert {type(each) for each in expected} == {tuple, str}
    with EncoderPool(kind, KINDS, tokenizer, options, workers=2) as pool:
        for future in [pool.submit(records(kind)) for _ in range(5)]:
            assert [plain(each) for each in future.result()] == expected


def test_an_error_of_the_encoder_arrives(tokenizer: Tokenizer) -> None:
    broken = Definition(tokenizer.definition.tokenizer, tokenizer.definition.config, "{{ oops")
    with EncoderPool("chat", KINDS, Tokenizer(broken), {}, workers=1) as pool:
        with pytest.raises(UserError, match="chat template") as caught:
            pool.submit(records("chat")).result()
        assert caught.value.fix


def test_a_worker_that_is_killed_is_told(tokenizer: Tokenizer) -> None:
    with EncoderPool("text", KINDS, tokenizer, {}, workers=1) as pool:
        pool.submit(records("text")).result()
        pool._processes[0].kill()
        with pytest.raises(MmcliError, match="ended early"):
            pool.submit(records("text")).result()


def test_a_cache_made_by_workers_is_the_same(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"text {n} " * (n % 7)}) for n in range(400)]
    path.write_text("\n".join([*lines[:200], "{oops", *lines[200:]]))
    monkeypatch.setattr(mmcli.data.encode.encoders, "BATCH_RECORDS", 16)
    made = []
    for name, alone in (("alone", 1e9), ("workers", -1.0)):
        monkeypatch.setattr(mmcli.data.encode.encoders, "ALONE_SECONDS", alone)
        monkeypatch.setattr(mmcli.data.encode.encoders, "usable_cores", lambda: 3)
        made.append(TokenCache.build_or_open(tmp_path / name, open_sources([str(path)]), tokenizer))
    alone_cache, worked = made
    assert worked.tally == alone_cache.tally and worked.tokens == alone_cache.tokens
    for file in sorted(each.name for each in alone_cache.folder.iterdir()):
        one, other = ((cache.folder / file).read_bytes() for cache in made)
        if file == "rejected.jsonl":  # unreadable lines are met while earlier records are still encoded
            one, other = (b"".join(sorted(content.splitlines(True))) for content in (one, other))
        if file == "meta.json":  # it has a checksum of those lines, and one of itself
            one, other = (json.dumps(without_checksums(json.loads(content))).encode() for content in (one, other))
        assert one == other, file


def without_checksums(meta: dict[str, Any]) -> dict[str, Any]:
    """A cache's description without the checksums that depend on the order of rejected lines."""
    del meta["checksums"]["rejected.jsonl"], meta["checksum"]
    return meta


HOLDER = """
import sys
from pathlib import Path
from mmcli.data.encode.workers import EncoderPool
from mmcli.data.records.kinds import dump_kinds
from mmcli.text.tokenizer import Tokenizer
pool = EncoderPool("text", dump_kinds(), Tokenizer.load(Path(sys.argv[1])), {}, workers=2)
print(*(process.pid for process in pool._processes), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_do_not_outlive_a_killed_process(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    workers = [int(pid) for pid in holder.stdout.readline().split()]
    assert len(workers) == 2
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in status(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
