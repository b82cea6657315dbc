"""What a data set amounts to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.check import check_data
from mmcli.data.encode.cache import TokenCache
from mmcli.data.records.account import LISTED
from mmcli.data.sources.sources import Sources, open_sources
from mmcli.text.tokenizer import Tokenizer


def sources_of(folder: Path, lines: list[Any], kind: str = "text") -> Sources:
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return open_sources([str(path)], kind=kind)


def chat(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "output": answer}


MIXED: dict[str, list[Any]] = {
    "text": [{"text": "the fox"}, {"text": ""}, "{broken", {"text": "the dog jumps"}, {"other": 1}, chat("a", "b")],
    "chat": [chat("the fox", "jumps"), chat("a", ""), {"messages": []}, chat("b", "over the dog"), {"text": "x"}],
    "preference": [
        {"prompt": "who", "chosen": "the fox", "rejected": "a dog"},
        {"prompt": "who", "chosen": "same", "rejected": "same"},
        {"chosen": "no prompt", "rejected": "none"},
    ],
}


@pytest.mark.parametrize("kind", list(MIXED))
def test_a_check_counts_what_a_training_keeps(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    sources = sources_of(tmp_path, MIXED[kind], kind)
    quarantine = tmp_path / "q.jsonl"
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer, quarantine=tmp_path / "expected.jsonl")
    found = check_data(sources, tokenizer, quarantine=quarantine)
    assert (found.tally.kept, found.tally.rejected) == (cache.tally.kept, cache.tally.rejected)
    assert found.tally.total == len(MIXED[kind])
    assert found.tally.reasons == cache.tally.reasons
    assert found.lengths.tolist() == cache.lengths.tolist() and found.tokens == cache.tokens
    assert found.trained == sum(int(cache.trained(i).sum()) for i in range(len(cache)))
    assert found.text_bytes == cache.text_bytes
    assert quarantine.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert found.unusable is None


def test_rejections_are_listed_by_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = check_data(sources_of(tmp_path, MIXED["text"]), tokenizer)
    assert [item.line for item in found.rejections] == [2, 3, 5, 6]
    assert found.rejections[1].reason.startswith("not JSON")
    assert found.kinds == {"text": 3, "unknown": 1, "chat": 1}
    many = check_data(sources_of(tmp_path, [{"text": "the fox"}, *["{"] * (LISTED + 5)]), tokenizer)
    assert (len(many.rejections), many.tally.rejected) == (LISTED, LISTED + 5)


def test_duplicates_have_the_same_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["the fox", "the dog", "the fox", "the fox", "the fox "]
    assert check_data(sources_of(tmp_path, [{"text": text} for text in texts]), tokenizer).duplicates == 2
    pairs = [{"prompt": "who", "chosen": a, "rejected": b} for a, b in (("x", "y"), ("y", "x"), ("x", "y"))]
    assert check_data(sources_of(tmp_path, pairs, "preference"), tokenizer).duplicates == 1


def test_lengths_fall_into_powers_of_two(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def text_of(tokens: int) -> dict[str, str]:
        value = {"text": "7" * (tokens - 2)}  # digits are one token each; bos and eos
        assert len(tokenizer.encode_document(value["text"])) == tokens
        return value

    found = check_data(sources_of(tmp_path, [text_of(n) for n in (3, 4, 7, 8, 32, 63)]), tokenizer)
    assert found.histogram() == [(2, 3, 1), (4, 7, 2), (8, 15, 1), (16, 31, 0), (32, 63, 2)]


def test_data_of_which_nothing_is_left_is_said_to_be_unusable(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = check_data(sources_of(tmp_path, ["{broken", {"text": ""}]), tokenizer)
    assert (found.tally.kept, found.tally.rejected, found.histogram()) == (0, 2, [])
    assert found.unusable is not None and "data.jsonl has no usable record" in found.unusable.what
