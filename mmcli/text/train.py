"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mmcli.errors import UserError, did_you_mean
from mmcli.stage import Reporter, Silent
from mmcli.text.definition import Definition, added_token
from mmcli.text.template import CHATML
from mmcli.text.tokenizer import Tokenizer, whole_characters

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# As Qwen marks them: transformers keeps these when it skips special tokens, so that tool calls can be read.
VISIBLE = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
CONTROLS = 32  # ids of control tokens before the bytes; those without a name yet are unused
MIN_VOCAB_SIZE = CONTROLS + 256 + 1

# Qwen2's: every digit alone, so that arithmetic can be learned. https://huggingface.co/Qwen/Qwen2-0.5B
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRETOKENIZERS = ("qwen2", "gpt2")

MAX_PIECE = 65_536  # characters; a longer text is cut, so that one line cannot fill the memory
# Bytes that a vocabulary of some ten thousand tokens is learned from well. The library keeps every different word: of
# Chinese, where a clause is a word, 65 bytes of memory for each byte of text.
ENOUGH_TEXT = 50_000_000
PROGRESS_EVERY = 1_000_000  # characters
SILENT: Reporter = Silent()


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 6400,
    pretokenizer: str = "qwen2",
    max_token_bytes: int | None = None,
    report: Reporter = SILENT,
) -> Tokenizer:
    """A byte-level BPE tokenizer with exactly `vocab_size` tokens, learned from `texts`, read once as a stream.

    The ids: control tokens 0 to 31 (pad `<|endoftext|>` 0, bos `<|im_start|>` 1, eos `<|im_end|>` 2), the 256
    bytes, then merges of pairs seen at least twice; a small text leaves the rest as unused tokens. The same
    texts in the same order give the same tokenizer. BPE: Sennrich et al. 2016; on bytes: Radford et al. 2019.

    Args:
        max_token_bytes: no token is longer. Of Chinese, where a clause is a word to the pre-tokenizer, a small corpus
            with repeating phrases fills the vocabulary with whole clauses; 12 keeps tokens to four characters.

    Raises:
        UserError: no text, a vocabulary too small for the bytes, no room in a token, or an unknown pre-tokenizer.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        what = f"a vocabulary of {vocab_size} is too small: {CONTROLS} control tokens and 256 bytes come first"
        raise UserError(what, f"give {MIN_VOCAB_SIZE} or more, such as 6400")
    if max_token_bytes is not None and max_token_bytes < 1:
        raise UserError(f"max_token_bytes = {max_token_bytes} leaves no token", "give 1 or more, such as 12")
    if pretokenizer not in PRETOKENIZERS:
        raise UserError(f'there is no pre-tokenizer "{pretokenizer}"', did_you_mean(pretokenizer, list(PRETOKENIZERS)))
    stream = _Stream(texts, report)
    definition = _train(stream, vocab_size, pretokenizer, max_token_bytes)
    if not stream.has_text:
        raise UserError("there is no text to train a tokenizer on", "give --data files that hold text")
    stream.finish()
    missing = vocab_size - len(definition["model"]["vocab"])
    if missing > 0:
        learned = vocab_size - missing
        report.note(
            f"{learned:,} tokens learned from the text; padded with {missing:,} unused tokens to {vocab_size:,}"
        )
    _set_controls(definition, vocab_size)
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {**names, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    return Tokenizer(Definition(definition, config, CHATML))


def control_names() -> list[str]:
    """The control tokens with ids 0 to 31, in order."""
    named = [PAD, BOS, EOS, *VISIBLE]
    return [*named, *(_spare(n) for n in range(CONTROLS - len(named)))]


def _spare(number: int) -> str:
    return f"<|spare_{number}|>"


def _train(stream: _Stream, vocab_size: int, pretokenizer: str, max_token_bytes: int | None) -> dict[str, Any]:
    """The tokenizer.json that the library learns."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer(pretokenizer)
    learner.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        max_token_length=max_token_bytes,  # of characters that stand for bytes
        min_frequency=2,
        special_tokens=control_names(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(stream, trainer)
    definition: dict[str, Any] = json.loads(learner.to_str())
    return definition


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


def _set_controls(definition: dict[str, Any], vocab_size: int) -> None:
    """Write the control tokens, and unused ones up to `vocab_size`, into a trained tokenizer.json."""
    vocab: dict[str, int] = definition["model"]["vocab"]
    names = control_names()
    for number in range(vocab_size - len(vocab)):
        name = _spare(CONTROLS - len(VISIBLE) - 3 + number)
        vocab[name] = len(vocab)
        names.append(name)
    definition["added_tokens"] = [added_token(name, vocab[name], special=name not in VISIBLE) for name in names]


class _Stream:
    """Texts in pieces of bounded length, with progress; knows afterwards whether there was any text."""

    def __init__(self, texts: Iterable[str], report: Reporter) -> None:
        self._texts = texts
        self._report = report
        self._characters = 0
        self.has_text = False

    def __iter__(self) -> Iterator[str]:
        told = 0
        for text in self._texts:
            for piece in pieces(text):
                self._characters += len(piece)
                self.has_text = self.has_text or not piece.isspace()
                yield piece
            if self._characters - told >= PROGRESS_EVERY:
                told = self._characters
                self._report.progress("tokenizer", told, None, "characters")

    def finish(self) -> None:
        self._report.progress("tokenizer", self._characters, self._characters, "characters")


def pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most `MAX_PIECE` characters: cut before a space where there is one, else anywhere."""
    start = 0
    while len(text) - start > MAX_PIECE:
        end = text.rfind(" ", start + 1, start + MAX_PIECE)
        if end < 0:
            end = start + MAX_PIECE
        yield whole_characters(text[start:end])
        start = end
    if start < len(text):
        yield whole_characters(text[start:])
