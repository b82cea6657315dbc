"""Records and rows as a model sees them, and tokens as people can read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import make_batch
from mmcli.data.pack.packing import pack_cache
from mmcli.data.preview import Example, pieces, printable, read_examples, read_rows
from mmcli.data.records.account import RecordAccount
from mmcli.data.sources.sources import Sources, open_any, open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer

TEXT: list[dict[str, Any]] = [{"text": f"the quick brown fox {number} jumps"} for number in range(9)]
CHAT: list[dict[str, Any]] = [
    {"instruction": "the fox", "output": "jumps over"},
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "the dog"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "the town"},
        ]
    },
]
PAIRS: list[dict[str, Any]] = [{"prompt": "who judges", "chosen": "seven wizards", "rejected": "a dog"}]
BY_KIND: dict[str, list[dict[str, Any]]] = {"text": TEXT, "chat": CHAT, "preference": PAIRS}


def write(folder: Path, values: Sequence[Any], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


def sources_of(folder: Path, values: Sequence[Any], kind: str) -> Sources:
    return open_sources([write(folder, values)], kind=kind)


@pytest.mark.parametrize("kind", list(BY_KIND))
def test_examples_are_what_a_training_reads(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    broken = [{"text": " "}, {"instruction": "x", "output": ""}, {"chosen": "a", "rejected": "a"}, {"other": 1}]
    sources = sources_of(tmp_path, [*BY_KIND[kind], *broken], kind)
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer)
    account = RecordAccount()
    examples = list(read_examples(sources, tokenizer, account))
    sequences = [sequence for example in examples for sequence in example.sequences]
    assert [each.ids for each in sequences] == [cache.ids(i).tolist() for i in range(len(cache))]
    assert [each.trained for each in sequences] == [cache.trained(i).tolist() for i in range(len(cache))]
    assert [example.record.line for example in examples] == list(range(1, len(BY_KIND[kind]) + 1))
    left_out = [f"{item.file}:{item.line} {item.reason}" for item in account.rejections]
    assert len(left_out) == len(broken) and left_out == cache.tally.first


def test_only_the_last_turn_can_be_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources = sources_of(tmp_path, CHAT[1:], "chat")
    [every] = read_examples(sources, tokenizer, RecordAccount())
    [last] = read_examples(sources, tokenizer, RecordAccount(), train_on="last")

    def learned(example: Example) -> str:
        [sequence] = example.sequences
        chosen = [id for id, trained in zip(sequence.ids, sequence.trained, strict=True) if trained]
        return tokenizer.decode(chosen, keep_special=True)

    assert learned(every) == "the dog<|im_end|>the town<|im_end|>"
    assert learned(last) == "the town<|im_end|>"


# What a file holds


@pytest.mark.parametrize("kind", list(BY_KIND))
def test_the_kind_is_what_the_first_records_are(tmp_path: Path, kind: str) -> None:
    assert open_any([write(tmp_path, BY_KIND[kind])]).kind == kind
    odd_ones_too = [{"other": 1}, *BY_KIND[kind], {"other": 2}]
    assert open_any([write(tmp_path, odd_ones_too, "odd.jsonl")]).kind == kind


def test_the_built_in_corpus_has_all_kinds_and_the_first_is_taken() -> None:
    assert open_any(["demo"]).kind == "text"
    assert open_any(["demo"], ("chat", "text")).kind == "chat"


def test_a_kind_that_will_not_do_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="preference pairs") as refused:
        open_any([write(tmp_path, PAIRS)], ("chat", "text"))
    assert "data.jsonl" in refused.value.what
    with pytest.raises(UserError, match="there is no file"):
        open_any([str(tmp_path / "nothing.jsonl")])


def test_records_of_no_kind_are_of_the_first(tmp_path: Path) -> None:
    assert open_any([write(tmp_path, [{"other": 1}])], ("chat", "text")).kind == "chat"


# Rows


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_rows_are_those_of_a_training(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    sources = sources_of(tmp_path, [*BY_KIND[kind], {"other": 1}], kind)
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer)
    packing = pack_cache(cache, 40)
    found = read_rows(sources, tokenizer, seq_len=40, most=100, limit=2)
    assert (len(found.packing), found.tally.rejected) == (len(packing), 1)
    assert len(found.rows) == min(2, len(packing))
    for number, row in enumerate(found.rows):
        expected = make_batch(cache, packing, [number])
        for name in ("ids_BT", "labels_BT", "positions_BT", "segments_BT"):
            assert np.array_equal(getattr(row.batch, name), getattr(expected, name)), name
        assert row.segments == packing.pieces(number)


def test_rows_are_of_the_first_records_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources = sources_of(tmp_path, TEXT, "text")
    found = read_rows(sources, tokenizer, seq_len=40, most=2, limit=100)
    assert found.tally.kept == 2
    first = [item.sequences[0].ids for item in read_examples(sources, tokenizer, RecordAccount())][:2]
    assert found.packing.tokens == sum(len(ids) - 1 for ids in first)


def test_pairs_are_not_packed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="not packed"):
        read_rows(sources_of(tmp_path, PAIRS, "preference"), tokenizer, seq_len=40, most=9, limit=1)


# Tokens for people


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    text = "the fox 天气🙂é\n\tend"
    ids = tokenizer.encode_text(text)
    found = list(pieces(tokenizer, ids, [1] * len(ids)))
    assert "".join(each.text for each in found) == printable(text) == "the fox 天气🙂é⏎⇥end"
    assert sum(each.tokens for each in found) == len(ids)
    sky = next(each for each in found if "天" in each.text)
    assert sky.tokens == len(tokenizer.encode_text("天")) == 3
    assert [each.ends_line for each in found].count(True) == 1
    assert all(each.trained and not each.control for each in found)


def test_broken_characters_are_bytes(tokenizer: Tokenizer) -> None:
    sky = tokenizer.encode_text("天")
    assert len(sky) == 3
    end = tokenizer.control_id("<|im_end|>")
    assert end is not None

    def shown(ids: Sequence[int], trained: Sequence[int]) -> list[tuple[str, int]]:
        return [(each.text, each.tokens) for each in pieces(tokenizer, ids, trained)]

    assert shown([*sky[:2], end], [0, 0, 0]) == [("<E5><A4>", 2), ("<|im_end|>", 1)]
    assert shown(sky[1:], [0, 0]) == [("<A4>", 1), ("<A9>", 1)]
    assert shown(sky, [0, 0, 1]) == [("<E5><A4>", 2), ("<A9>", 1)]  # its end alone is trained
    assert shown(sky[:1], [1]) == [("<E5>", 1)]
    fox = tokenizer.encode_text("x")
    assert shown([*sky[:1], *fox], [0, 0]) == [("<E5>", 1), ("x", 1)]


def test_control_tokens_are_told_from_text_that_spells_them(tokenizer: Tokenizer) -> None:
    spelled = tokenizer.encode_text("<|im_end|>")
    end = tokenizer.control_id("<|im_end|>")
    assert end is not None
    found = list(pieces(tokenizer, [*spelled, end], [0] * len(spelled) + [1]))
    assert [each.control for each in found] == [False] * (len(found) - 1) + [True]
    assert (found[-1].text, found[-1].trained) == ("<|im_end|>", True)


def test_nothing_can_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\u202ec\r") == "a\\x1b[31mb\\u202ec\\r"
