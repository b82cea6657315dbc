"""Mixtures: which arguments have a weight, and what an epoch has of each source."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mmcli.data.check import check_data
from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.packing import pack_cache
from mmcli.data.pack.selection import Selection, split_documents, take_tokens, token_targets
from mmcli.data.sources.source import Weight, split_weight
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer

Mix = Callable[..., TokenCache]


def write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def mix(tmp_path: Path, tokenizer: Tokenizer) -> Mix:
    """A cache of `a.jsonl` (600 texts) and `b.jsonl` (100 texts), which have these endings."""

    def build(a: str = "", b: str = "") -> TokenCache:
        first = write(tmp_path / "a.jsonl", [f"the quick fox number {n} " + "jumps " * (n % 7) for n in range(600)])
        second = write(tmp_path / "b.jsonl", [f"a lazy dog number {n} " + "judge " * (n % 5) for n in range(100)])
        return TokenCache.build_or_open(tmp_path / "cache", open_sources([first + a, second + b]), tokenizer)

    return build


def test_shares_of_an_epoch_are_those_of_the_weights(mix: Mix) -> None:
    cache = mix(":0.7", ":0.3")
    everything = Selection.whole(cache)
    taken = everything.mixed(cache, seed=1)
    of_a, of_b = taken.source_tokens(cache)
    assert of_b == everything.source_tokens(cache)[1]  # the scarce one, all of it
    assert of_a == round(of_b / 0.3 * 0.7)
    assert (np.diff(taken.documents) > 0).all()
    rows = pack_cache(cache, 64, selection=taken)
    docs, pairs = rows.piece_doc, rows.piece_len
    assert pairs[docs < 600].sum() / pairs.sum() == pytest.approx(0.7, abs=0.02)


def test_no_source_is_repeated_and_the_scarce_one_is_used_up(mix: Mix) -> None:
    for a, b in ((":1", ":9"), (":9", ":1"), (":0.99", ":0.01")):
        cache = mix(a, b)
        taken = Selection.whole(cache).mixed(cache).source_tokens(cache)
        whole = Selection.whole(cache).source_tokens(cache)
        assert any(used == count for used, count in zip(taken, whole, strict=True))
        assert taken[0] / taken[1] == pytest.approx(float(a[1:]) / float(b[1:]), rel=0.02)


def test_weights_are_no_part_of_the_cache(mix: Mix) -> None:
    plain, weighted = mix(), mix(":2", ":1")
    assert plain.key == weighted.key
    assert plain.mixture is None and Selection.whole(plain).mixed(plain).tokens == plain.tokens
    assert Selection.whole(plain).describe_mixture(plain) is None
    assert [share for _, share in weighted.mixture or ()] == pytest.approx([2 / 3, 1 / 3])
    assert weighted.sequences_by_source.tolist() == [600, 100]


def test_the_choice_is_one_of_seed_and_content(mix: Mix) -> None:
    cache = mix(":1", ":1")
    first, again, other = (Selection.whole(cache).mixed(cache, seed) for seed in (1, 1, 2))
    assert first.documents.tolist() == again.documents.tolist() and first.stops.tolist() == again.stops.tolist()
    assert first.documents.tolist() != other.documents.tolist()


def test_the_held_out_part_is_of_all_the_data(mix: Mix) -> None:
    plain, weighted = mix(), mix(":1", ":1")
    train, held = split_documents(weighted, 0.1, seed=3)
    assert held.documents.tolist() == split_documents(plain, 0.1, seed=3)[1].documents.tolist()
    assert not set(train.documents) & set(held.documents)
    of_a, of_b = train.source_tokens(weighted)
    assert abs(of_a - of_b) <= 1
    assert split_documents(weighted, 0.0, seed=3)[0].tokens == Selection.whole(weighted).mixed(weighted, 3).tokens


@pytest.mark.parametrize("kind", ["chat", "preference"])
def test_conversations_and_pairs_are_taken_whole(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    names = []
    for name, count in (("a", 300), ("b", 50)):
        sides = {"output": "the fox"} if kind == "chat" else {"chosen": "the fox", "rejected": "a dog"}
        values = [{"instruction": f"{name} {n} " + "who " * (n % 9), **sides} for n in range(count)]
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
        names.append(f"{tmp_path / name}.jsonl:1")
    cache = TokenCache.build_or_open(tmp_path / "cache", open_sources(names, kind=kind), tokenizer)
    taken = Selection.whole(cache).mixed(cache)
    assert (taken.starts == 0).all() and (taken.stops == cache.lengths[taken.documents]).all()
    of_a, of_b = taken.source_tokens(cache)
    assert of_a == pytest.approx(of_b, rel=0.02)
    if kind == "preference":
        assert (taken.documents[::2] + 1 == taken.documents[1::2]).all() and (taken.documents[::2] % 2 == 0).all()


def test_take_tokens_cuts_the_last_or_comes_near() -> None:
    lengths, hashes = np.array([4, 6, 10]), np.array([3, 1, 2], dtype=np.uint64)
    assert take_tokens(lengths, hashes, 9, cut=True).tolist() == [0, 6, 3]
    assert take_tokens(lengths, hashes, 9, cut=False).tolist() == [0, 6, 0]
    assert take_tokens(lengths, hashes, 12, cut=False).tolist() == [0, 6, 10]
    assert take_tokens(lengths, hashes, 1, cut=False).tolist() == [0, 6, 0]
    assert take_tokens(lengths, hashes, 20, cut=False).tolist() == [4, 6, 10]


def test_a_part_without_tokens_is_refused() -> None:
    assert token_targets([1000, 30], [("a", 0.9), ("b", 0.1)]) == [270, 30]
    with pytest.raises(UserError, match=r"b has a share of 10\.0%, but no token"):
        token_targets([1000, 0], [("a", 0.9), ("b", 0.1)])


def test_what_has_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "odd.txt:0.5", "C", "folder/b.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    weighted = ["a.txt:0.5", "folder:2", "demo:1e-1", "*.txt:.5", "hf:o/n:config:train:0.3", "a.txt:1."]
    assert [split_weight(name)[1] for name in weighted] == [Weight(x, x) for x in (0.5, 2, 0.1, 0.5, 0.3, 1)]
    assert split_weight("hf:o/n:config:train:0.3")[0] == "hf:o/n:config:train"
    plain = ["odd.txt:0.5", "none.txt:0.5", "hf:o/n:config", r"C:\a.txt", "a.txt:x", "a.txt:nan", "demo"]
    assert [split_weight(name) for name in plain] == [(name, None) for name in plain]
    for wrong in ("a.txt:0", "a.txt:-1", "demo:0.0", "a.txt:1e999"):
        with pytest.raises(UserError, match="is not above 0"):
            split_weight(wrong)


def test_weights_are_for_all_or_none(mix: Mix) -> None:
    with pytest.raises(UserError, match=r"b\.jsonl has no weight, and others have"):
        mix(":0.5")


def test_describe_and_check_tell_the_shares(tmp_path: Path, mix: Mix, tokenizer: Tokenizer) -> None:
    cache = mix(":3", ":1")
    sources = open_sources([f"{tmp_path}/a.jsonl:3", f"{tmp_path}/b.jsonl:1"])
    assert "): 75.0%, b.jsonl (" in sources.describe
    found = check_data(sources, tokenizer)
    whole = Selection.whole(cache)
    taken = whole.mixed(cache)
    expected = zip(taken.source_tokens(cache), whole.source_tokens(cache), strict=True)
    assert [each[1:] for each in found.mixture or []] == list(expected)
    assert "(75.0%)" in (taken.describe_mixture(cache) or "")
    with pytest.raises(UserError, match="has a weight, but a tokenizer takes all"):
        sources.refuse_weights("a tokenizer")
