"""The texts of data: even samples, and the same texts as a training reads."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.encode.texts import Corpus, EvenSample, open_corpus
from mmcli.data.record import Record
from mmcli.data.records.kinds import as_text
from mmcli.data.sources import source as source_module
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.text.chat import encode_chat
from mmcli.text.template import TOOLS_TEXT
from mmcli.text.tokenizer import Tokenizer

COUNT = 20_000


def taken(path: Path, most: float) -> list[int]:
    """Numbers of the records that are taken."""
    sources = open_sources([str(path)])
    even = EvenSample(sources.total, most)
    read = 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count

    records = (item for item in sources.records(on_bytes) if isinstance(item, Record))
    return [number for number, record in enumerate(records) if even.takes(as_text(record), read)]


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"a.{request.param}"
    noise = random.Random(0)
    rows = [{"text": f"{number:06} {noise.randbytes(100).hex()}"} for number in range(COUNT)]
    if request.param == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def test_all_is_taken_where_it_is_little(corpus: Path) -> None:
    assert taken(corpus, 50e6) == list(range(COUNT))


def test_a_part_is_taken_from_everywhere(corpus: Path) -> None:
    found = taken(corpus, 500_000)
    assert found == taken(corpus, 500_000)
    assert len(found) * 207 == pytest.approx(500_000, rel=0.05)
    tenths = [number * 10 // COUNT for number in found]
    expected = len(found) / 10
    assert all(0.5 * expected < tenths.count(tenth) < 1.5 * expected for tenth in range(10))


def test_data_of_unknown_size_is_taken_from_the_beginning() -> None:
    even = EvenSample(open_sources(["demo"]).total, 10)
    assert [even.takes("12345", 0) for _ in range(4)] == [True, True, False, False]
    assert (even.taken, even.skipped) == (10, 2)


MESSAGES = [
    {"role": "user", "content": "what is the sky like"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}]},
    {"role": "tool", "content": "blue"},
    {"role": "assistant", "content": "It is blue.", "reasoning_content": "The tool says so."},
]
TEXTS: dict[str, list[str]] = {
    "text": ["the text alone", "another"],
    "chat": [
        "what is the sky like",
        '{"name": "look", "arguments": {"at": "sky"}}',
        "blue",
        "The tool says so.",
        "It is blue.",
    ],
    "preference": ["who jumps", "the fox", "a dog"],
}
AROUND = [
    *("user\n", "assistant\n", "tool\n", "assistant\n"),
    *TOOLS_TEXT,
    '{"type": "function", "function": {"name": "look"}}',
]
RECORDS: dict[str, list[Any]] = {
    "text": [{"text": "the text alone", "title": "never read", "url": "x"}, {"text": ""}, {"content": "another"}],
    "chat": [{"messages": MESSAGES, "source": "never read", "tools": [{"name": "look"}]}, {"messages": MESSAGES[:1]}],
    "preference": [{"prompt": "who jumps", "chosen": "the fox", "rejected": "a dog", "by": "me"}, {"chosen": 1}],
}


@pytest.mark.parametrize("kind", list(RECORDS))
def test_a_tokenizer_reads_the_texts_that_a_training_encodes(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in RECORDS[kind]) + "{broken\n")
    sources = open_sources([str(path)], kind=kind)
    corpus = Corpus([sources])
    assert list(corpus) == TEXTS[kind]
    assert corpus.taken == sum(len(text.encode()) for text in TEXTS[kind]) and corpus.sample == "".join(TEXTS[kind])
    whole = Corpus([sources], template=True)
    assert list(whole) == [*TEXTS[kind], *(AROUND if kind == "chat" else [])]
    assert whole.sample == corpus.sample
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer)
    found, expected = corpus.account.tally, cache.tally
    assert (found.kept, found.rejected, found.reasons) == (expected.kept, expected.rejected, expected.reasons)
    assert sorted(found.first) == sorted(expected.first)
    if kind == "text":
        assert [cache.ids(i).tolist() for i in range(len(cache))] == [tokenizer.encode_document(t) for t in TEXTS[kind]]


def test_a_corpus_without_a_usable_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " "}\n')
    with pytest.raises(UserError, match="no usable record: 1 rejected"):
        list(Corpus([open_sources([str(path)])]))
    path.write_text('{"text": "fine"}\n{"text": " "}\n')
    with pytest.raises(UserError, match=r'a\.jsonl:2 "text" is empty'):
        list(Corpus([open_sources([str(path)], strict=True)]))


def test_a_corpus_opens_each_of_its_sources_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_files(name: str) -> Any:
        opened.append(name)
        return real(name)

    real = source_module.open_files
    monkeypatch.setattr(source_module, "open_files", open_files)
    names = []
    for name, value in (("a", {"body": "one"}), ("b", {"dialog": MESSAGES})):
        path = tmp_path / f"{name}.jsonl"
        path.write_text((json.dumps(value) + "\n") * 2)
        names.append(str(path))
    corpus = open_corpus(names, ["text=body", "messages=dialog"])
    assert [sources.kind for sources in corpus.sources] == ["text", "chat"]
    assert list(corpus) == ["one", "one", *TEXTS["chat"], *TEXTS["chat"]]
    assert opened == names


def test_what_the_template_writes_around_tools_is_what_a_tokenizer_is_trained_on(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    shown = encode_chat(tokenizer, MESSAGES[:1], tools=[tool], add_generation_prompt=True).ids
    text = "".join(tokenizer.control_token(id) or tokenizer.decode([id]) for id in shown)
    assert all(part in text.replace("<tool_call></tool_call>", "") or part in text for part in TOOLS_TEXT)
