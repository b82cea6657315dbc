"""Training: exact size, the ids promised, the same result every time, and BPE as it is defined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
import tokenizers

from mmcli.errors import UserError
from mmcli.stage import Silent
from mmcli.text import train
from mmcli.text.bytelevel import byte_alphabet
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import CONTROLS, MIN_VOCAB_SIZE, control_names, pieces, train_tokenizer


class Recorder(Silent):
    """A reporter that remembers notes and progress."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.told: list[tuple[str, float, float | None, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        self.told.append((task, done, total, unit))


def vocab(tokenizer: Tokenizer) -> dict[str, int]:
    found: dict[str, int] = tokenizer.definition.tokenizer["model"]["vocab"]
    return found


def test_control_tokens_come_first(tokenizer: Tokenizer) -> None:
    names = control_names()
    assert len(names) == CONTROLS == 32
    assert names[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert names[3:9] == [
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
    ]
    assert names[-1] == "<|spare_22|>"
    assert [tokenizer.control_id(name) for name in names] == list(range(32))
    added = {token["content"]: token["special"] for token in tokenizer.definition.tokenizer["added_tokens"]}
    assert [name for name, special in added.items() if not special] == names[3:9]
    assert {vocab(tokenizer)[symbol] for symbol in byte_alphabet()} == set(range(32, 288))


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, 300, 411, 5000])
@pytest.mark.parametrize("pretokenizer", ["qwen2", "gpt2"])
def test_the_size_is_exact(texts: list[str], vocab_size: int, pretokenizer: str) -> None:
    trained = train_tokenizer(texts * 3, vocab_size=vocab_size, pretokenizer=pretokenizer)
    assert trained.vocab_size == vocab_size
    assert sorted(vocab(trained).values()) == list(range(vocab_size))
    for text in texts:
        assert trained.decode(trained.encode_text(text)) == text


def test_a_small_text_is_filled_with_spare_tokens() -> None:
    report = Recorder()
    trained = train_tokenizer(["abab abab"], vocab_size=320, report=report)
    merges = trained.definition.tokenizer["model"]["merges"]
    assert [left + right for left, right in merges] == ["ab", "abab"]  # no merge that is seen only once
    assert report.notes == ["290 tokens learned from the text; padded with 30 unused tokens to 320"]
    assert trained.control_id("<|spare_23|>") == 290
    assert trained.control_id("<|spare_52|>") == 319
    assert len(trained.control_tokens) == 32 + 30


def test_no_note_where_the_text_fills_the_vocabulary(texts: list[str]) -> None:
    report = Recorder()
    train_tokenizer(texts * 3, vocab_size=300, report=report)
    assert report.notes == []


def plain_bpe(text: str, merges: int) -> list[tuple[str, str]]:
    """BPE as Sennrich et al. define it: merge the most frequent pair, ties by the older symbols."""
    alphabet = sorted(byte_alphabet())
    rank = {symbol: number for number, symbol in enumerate(alphabet)}
    symbols = {byte: symbol for symbol, byte in byte_alphabet().items()}
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(train.QWEN2_PATTERN), behavior="isolated")
    words = [[symbols[byte] for byte in word.encode()] for word, _ in split.pre_tokenize_str(text)]
    found = []
    for _ in range(merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], rank[pair[0]], rank[pair[1]]))
        found.append(best)
        rank.setdefault("".join(best), len(rank))
        words = [merged(word, best) for word in words]
    return found


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(word):
        both = tuple(word[at : at + 2]) == pair
        result.append("".join(pair) if both else word[at])
        at += 2 if both else 1
    return result


def test_merges_are_those_of_bpe(texts: list[str]) -> None:
    text = "\n".join(texts * 2)
    trained = train_tokenizer([text], vocab_size=MIN_VOCAB_SIZE + 119)
    found = [tuple(merge) for merge in trained.definition.tokenizer["model"]["merges"]]
    assert found == plain_bpe(text, 120)


TRAIN = """
import json, sys
from mmcli.text.train import train_tokenizer
print(train_tokenizer(json.load(sys.stdin) * 2, vocab_size=500).fingerprint)
"""


def test_the_same_in_every_process(texts: list[str]) -> None:
    """Hash seeds and thread counts do not show; most merges of this small text are ties."""
    found = set()
    for seed, threads in [("0", "1"), ("1", "2"), ("2", "4"), ("3", "3")]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        process = subprocess.run(
            [sys.executable, "-c", TRAIN],
            input=json.dumps(texts),
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found.add(process.stdout)
    assert found == {train_tokenizer(texts * 2, vocab_size=500).fingerprint + "\n"}


def test_other_texts_give_another_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert train_tokenizer(texts[:3] * 3, vocab_size=600).fingerprint != tokenizer.fingerprint


def test_digits_stand_alone_with_qwen2_only() -> None:
    texts = ["in 1234 and 1234, since 1234 or 1234"] * 5
    qwen2 = train_tokenizer(texts, vocab_size=400)
    gpt2 = train_tokenizer(texts, vocab_size=400, pretokenizer="gpt2")
    assert [qwen2.decode([id]) for id in qwen2.encode_text("x1234")] == ["x", "1", "2", "3", "4"]
    assert [gpt2.decode([id]) for id in gpt2.encode_text("x1234")] == ["x", "12", "34"]


def test_spelled_control_tokens_in_the_text_are_not_learned() -> None:
    trained = train_tokenizer(["<|im_end|> <think> <|im_end|> <think>"] * 10, vocab_size=500)
    assert len(trained.control_tokens) > 32  # what the text did not give is spare
    assert not set(trained.control_tokens.values()) & set(trained.encode_text("<|im_end|><think>"))


def test_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "MAX_PIECE", 10)
    assert list(pieces("ab cd ef gh ij kl")) == ["ab cd ef", " gh ij kl"]
    assert list(pieces("深" * 25)) == ["深" * 10, "深" * 10, "深" * 5]
    assert list(pieces("")) == []
    assert list(pieces("x\ud800")) == ["x\ufffd"]
    text = "word " * 7 + "x" * 33 + " end"
    assert "".join(pieces(text)) == text
    assert max(map(len, pieces(text))) <= 10


def test_texts_are_read_as_a_stream() -> None:
    """Few texts are alive at a time, however many there are."""
    alive = most = 0

    class Text(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive, most
        for number in range(3000):
            alive += 1
            most = max(most, alive)
            yield Text(f"text number {number}")

    train_tokenizer(texts(), vocab_size=300)
    assert most < 1000


def test_progress_is_told() -> None:
    report = Recorder()
    train_tokenizer(("x " * 250_000 for _ in range(5)), vocab_size=300, report=report)
    assert report.told == [
        ("tokenizer", 1_000_000, None, "characters"),
        ("tokenizer", 2_000_000, None, "characters"),
        ("tokenizer", 2_500_000, 2_500_000, "characters"),
    ]


def test_no_token_is_longer_than_asked() -> None:
    texts = ["这句话里的反义词是什么呢", "wonderful"] * 20
    longest = []
    for limit in (None, 6):
        trained = train_tokenizer(texts, vocab_size=320, max_token_bytes=limit)
        pieces = [trained.decode([n]).encode() for n in range(288, trained.vocab_size)]
        longest.append(max(map(len, (piece for piece in pieces if not piece.startswith(b"<|")))))
    assert longest[0] > 6 and longest[1] == 6


def test_mistakes_are_refused(texts: list[str]) -> None:
    for nothing in ([], [""], ["  \n", "\t"]):
        with pytest.raises(UserError, match="there is no text"):
            train_tokenizer(nothing, vocab_size=300)
    with pytest.raises(UserError, match="a vocabulary of 288 is too small") as caught:
        train_tokenizer(texts, vocab_size=288)
    assert "289" in caught.value.fix
    with pytest.raises(UserError, match="max_token_bytes = 0 leaves no token"):
        train_tokenizer(texts, max_token_bytes=0)
    with pytest.raises(UserError, match='no pre-tokenizer "gpt"') as caught:
        train_tokenizer(texts, pretokenizer="gpt")
    assert caught.value.fix == 'did you mean "gpt2"?'


def test_errors_of_the_texts_come_through() -> None:
    def texts() -> Iterator[str]:
        yield "some text"
        raise UserError("line 2 is broken", "mend it")

    with pytest.raises(UserError, match="line 2 is broken"):
        train_tokenizer(texts(), vocab_size=300)
