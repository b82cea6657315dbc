"""Byte-level BPE as a tokenizer.json writes it: its alphabet, what each token stands for, its form for plain text.

Source of the alphabet: GPT-2's `bytes_to_unicode` (Radford et al. 2019); the `tokenizers` library uses the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Bytes that occur in UTF-8 text; a vocabulary may lack the others and still encode every text.
UTF8_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
# Bytes of characters that texts do without: ASCII controls but tab and line ends, and planes 4 to 16 (unassigned, or
# for private use). A tokenizer may lack them (SmolLM2 does); text is then encoded with U+FFFD in their place.
RARE_BYTES = (frozenset({*range(0x20), 0x7F}) - {0x09, 0x0A, 0x0D}) | {0xF1, 0xF2, 0xF3, 0xF4}


@functools.cache
def byte_alphabet() -> Mapping[str, int]:
    """The 256 characters that stand for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def why_not_byte_level(definition: Mapping[str, Any]) -> str | None:
    """What keeps this tokenizer.json from being a byte-level BPE that can encode every text, or None."""
    model = definition["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        return f"its model is {model.get('type', 'of an unknown type')}"
    if not any(_uses_byte_level(definition.get(part)) for part in ("pre_tokenizer", "normalizer")):
        return "it has no ByteLevel pre-tokenizer (SentencePiece style)"
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return "its BPE marks the ends or the insides of words"
    missing = sorted(UTF8_BYTES - RARE_BYTES - _bytes_in(model["vocab"]))
    return f"its vocabulary lacks {len(missing)} bytes of UTF-8 (the first is 0x{missing[0]:02X})" if missing else None


def _bytes_in(vocab: Mapping[str, int]) -> set[int]:
    return {byte for symbol, byte in byte_alphabet().items() if symbol in vocab}


def unwritable_characters(vocab: Mapping[str, int]) -> str:
    """The rare characters that this vocabulary cannot write, as the inside of a regex class; "" if it writes all."""
    parts = []
    for byte in sorted(RARE_BYTES - _bytes_in(vocab)):
        if byte < 0x80:
            parts.append(chr(byte))
        else:  # the first of four bytes: 2^18 characters
            first = (byte & 0x07) << 18
            parts.append(f"{chr(first)}-{chr(min(first + (1 << 18), 0x110000) - 1)}")
    return "".join(parts)


def _uses_byte_level(part: Any) -> bool:
    if isinstance(part, Mapping):
        return part.get("type") == "ByteLevel" or any(_uses_byte_level(value) for value in part.values())
    return isinstance(part, list) and any(_uses_byte_level(item) for item in part)


# What control tokens that are not marked special look like: `<think>`, `<|fim_prefix|>`, `[INST]`, `<｜User｜>`.
TAG = re.compile(r"<.+>|\[.+\]", re.DOTALL)


def is_control(token: Mapping[str, Any]) -> bool:
    """True if an added token steers the model: it is marked special, or looks like a tag.

    Text are all others, such as words and runs of white space (GPT-J and Phi add them to shorten code), and single
    byte symbols (without them a text that holds this byte could not be written).
    """
    content = token["content"]
    return content not in byte_alphabet() and (bool(token.get("special")) or TAG.fullmatch(content) is not None)


def plain_definition(definition: Mapping[str, Any], controls: Collection[str]) -> dict[str, Any]:
    """The tokenizer.json for text: no `controls`, no post-processor, no truncation, padding or dropout.

    The library numbers added tokens that its vocabulary lacks by their order, so those of text are entered there.

    Characters that the vocabulary cannot write become U+FFFD. The controls' ids stay reserved. Where BPE could still
    spell one out of its vocabulary (through merges, or by `ignore_merges`, which looks whole words up), the entry and
    the merges that need it are taken out.
    """
    model = {**definition["model"], "unk_token": None, "dropout": None}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("ignore_merges") or any(left + right in controls for left, right in merges):
        model["vocab"] = {token: id for token, id in model["vocab"].items() if token not in controls}
        model["merges"] = [
            [left, right]
            for left, right in merges
            if not (left + right in controls or left in controls or right in controls)
        ]
    added = [token for token in definition.get("added_tokens") or [] if token["content"] not in controls]
    model["vocab"] = {**{token["content"]: token["id"] for token in added}, **model["vocab"]}
    unwritable = unwritable_characters(model["vocab"])
    if unwritable:
        replace = {"type": "Replace", "pattern": {"Regex": f"[{unwritable}]"}, "content": "\ufffd"}
        own = definition.get("normalizer")
        definition = {
            **definition,
            "normalizer": {"type": "Sequence", "normalizers": [replace, *([own] if own else [])]},
        }
    off = {"post_processor": None, "truncation": None, "padding": None}
    return {**definition, **off, "model": model, "added_tokens": added}


def token_table(definition: Mapping[str, Any], controls: Mapping[str, int]) -> list[bytes]:
    """[V] the bytes of text that each id stands for: b"" for control tokens and for ids that no token has."""
    tokens = dict(_tokens(definition))
    table = [b""] * (max(tokens.values()) + 1)
    to_latin = str.maketrans({symbol: chr(byte) for symbol, byte in byte_alphabet().items()})
    alphabet = frozenset(byte_alphabet())
    added = {token["content"] for token in definition.get("added_tokens") or []}
    for token, id in tokens.items():
        spelled = token not in added and alphabet.issuperset(token)
        table[id] = token.translate(to_latin).encode("latin-1") if spelled else token.encode()
    for symbol, byte in byte_alphabet().items():
        if symbol in added and symbol in tokens:
            table[tokens[symbol]] = bytes([byte])
    for id in controls.values():
        table[id] = b""
    return table


def _tokens(definition: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(token, id) of the vocabulary and the added tokens."""
    yield from definition["model"]["vocab"].items()
    for token in definition.get("added_tokens") or []:
        yield token["content"], token["id"]
