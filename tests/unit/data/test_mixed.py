"""Text and conversations in one training: what each record becomes, what is cut, and which stage takes what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmcli.data.config import DataConfig
from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import evaluation_batches
from mmcli.data.pack.packing import pack_cache
from mmcli.data.pack.selection import Selection, split_documents
from mmcli.data.record import Record
from mmcli.data.sources.sources import Sources, open_data, open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Texts of 8 to 300 words, and conversations of which one is longer than a row."""
    texts = [{"text": f"the quick fox number {n} " + "jumps over " * (4 + n * 3)} for n in range(50)]
    chats = [
        {"messages": [{"role": "user", "content": f"judge {n}"}, {"role": "assistant", "content": "lazy dog " * size}]}
        for n, size in enumerate([3, 5, 80, 2, 4] * 4)
    ]
    names = []
    for name, records in (("text", texts), ("chat", chats)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        names.append(str(path))
    return names[0], names[1]


def build(tmp_path: Path, sources: Sources, tokenizer: Tokenizer, **options: bool) -> TokenCache:
    return TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer, options=options)


def test_each_record_is_encoded_as_alone(tmp_path: Path, files: tuple[str, str], tokenizer: Tokenizer) -> None:
    both = build(tmp_path, open_sources(files, mixed=True), tokenizer)
    alone = [
        build(tmp_path, open_sources([name], kind=kind), tokenizer)
        for name, kind in zip(files, ("text", "chat"), strict=True)
    ]
    assert both.kind == "mixed" and both.sequences_by_source.tolist() == [len(each) for each in alone]
    place = 0
    for cache in alone:
        for i in range(len(cache)):
            assert np.array_equal(both.ids(place), cache.ids(i)) and np.array_equal(
                both.trained(place), cache.trained(i)
            )
            place += 1
    assert both.cuttable(np.arange(len(both))).tolist() == [True] * 50 + [False] * 20


def test_texts_are_cut_to_fill_rows_and_conversations_are_kept_whole(
    tmp_path: Path, files: tuple[str, str], tokenizer: Tokenizer
) -> None:
    cache = build(tmp_path, open_sources(files, mixed=True), tokenizer)
    rows = pack_cache(cache, 64)
    of_text = rows.piece_doc < 50
    texts, chats = np.arange(50), np.arange(50, 70)
    assert rows.piece_len[of_text].sum() == (cache.lengths_of(texts) - 1).sum()  # every pair of the texts
    assert sorted(rows.piece_doc[~of_text]) == chats.tolist()  # each conversation once, in one piece
    assert (rows.piece_start[~of_text] == 0).all()
    over = np.maximum(cache.lengths_of(chats) - 65, 0)
    assert (rows.truncated, rows.truncated_tokens) == ((over > 0).sum(), over.sum()) and rows.truncated == 4
    assert rows.dropped == 0
    for row in range(len(rows)):
        assert len({document < 50 for document, _, _ in rows.pieces(row)}) == 1
    (batch,) = evaluation_batches(cache, rows, len(rows))
    assert batch.tokens == rows.tokens
    text_rows = [row for row in range(len(rows)) if rows.pieces(row)[0][0] < 50]
    assert (batch.labels_BT[text_rows][batch.segments_BT[text_rows] >= 0] >= 0).all()


def test_shares_are_of_tokens_and_conversations_are_taken_whole(
    tmp_path: Path, files: tuple[str, str], tokenizer: Tokenizer
) -> None:
    text, chat = files
    cache = build(tmp_path, open_sources([f"{text}:0.3", f"{chat}:0.7"], mixed=True), tokenizer)
    taken = Selection.whole(cache).mixed(cache)
    of_text, of_chat = taken.source_tokens(cache)
    assert of_text / (of_text + of_chat) == pytest.approx(0.3, abs=0.01)
    whole = taken.documents >= 50
    assert np.array_equal(taken.lengths[whole], cache.lengths_of(taken.documents[whole]))
    kept, held = split_documents(cache, 0.2, seed=0)
    assert len(held) and (kept.documents[:, None] != held.documents).all()


def test_prompts_are_trained_too_where_that_is_asked_for(
    tmp_path: Path, files: tuple[str, str], tokenizer: Tokenizer
) -> None:
    cache = build(tmp_path, open_sources(files, mixed=True), tokenizer, mask_prompts=False)
    for i in range(50, 70):
        assert not cache.trained(i)[0] and cache.trained(i)[1:].all()
    assert not cache.cuttable(np.arange(50, 70)).any()


def test_a_stage_takes_a_mixture_only_with_what_it_is_for(files: tuple[str, str]) -> None:
    text, chat = files
    assert open_sources([text], mixed=True).kind == "text"
    assert open_sources([chat], kind="chat", mixed=True).kind == "chat"
    assert open_sources([text, chat], kind="chat", mixed=True).kind == "mixed"
    for kind, names, mixed in (("text", [chat], True), ("chat", [text], True), ("text", [text, chat], False)):
        with pytest.raises(UserError, match="and this stage needs"):
            open_sources(names, kind=kind, mixed=mixed)


def test_validation_data_of_a_mixture_is_of_either_kind(files: tuple[str, str]) -> None:
    text, chat = files
    for val in (text, chat):
        opened = open_data("text", DataConfig(sources=(text, chat), val=(val,)), mixed=True)
        assert opened.val is not None and (opened.train.kind, opened.val.kind) == ("mixed", "mixed")
    with pytest.raises(UserError, match="and this stage needs"):
        open_data("text", DataConfig(sources=(text,), val=(chat,)), mixed=True)


def test_the_built_in_corpus_by_kind(files: tuple[str, str]) -> None:
    def first(*names: str, kind: str = "text") -> list[str]:
        sources = open_sources(names, kind=kind, mixed=True).first(1)
        return [next(iter(item.value)) for item in sources.records()]

    assert first("demo:0.4", "demo:chat:0.6") == ["text", "messages"]
    assert first("demo:text", "demo:chat", kind="chat") == ["text", "messages"]
    assert first("demo", files[0], kind="chat") == ["messages", "text"]
    with pytest.raises(UserError, match="demo:chat holds conversations"):
        open_sources(["demo:chat"], mixed=True)
    with pytest.raises(UserError, match="demo:preference holds preference pairs"):
        open_sources(["demo", "demo:preference"], mixed=True)
    with pytest.raises(UserError, match="demo:arithmetic holds conversations"):
        open_sources(["demo:arithmetic"])
    assert open_sources(["demo:chat"], kind="chat").fingerprint == open_sources(["demo"], kind="chat").fingerprint


def test_a_topic_of_the_built_in_conversations() -> None:
    sources = open_sources(["demo:tools"], kind="chat")
    whole = open_sources(["demo"], kind="chat").first(2000)
    expected = [item.value for item in whole.records() if isinstance(item, Record) and "tools" in item.value]
    found = [item.value for item in sources.records() if isinstance(item, Record)]
    assert found[: len(expected)] == expected and len(expected) > 20
    assert sources.describe == "the built-in corpus (tools)"
    two = open_sources(["demo:tools:1", "demo:thinking:3"], kind="chat")
    assert two.mixture == (("demo:tools", 0.25), ("demo:thinking", 0.75))
    fingerprints = {open_sources([name], kind="chat").fingerprint for name in ("demo", "demo:tools", "demo:thinking")}
    assert len(fingerprints) == 3
