"""The tokenizer in a GGUF file's metadata, from and to a tokenizer.json.

llama.cpp normalizes no text for these pre-tokenizers, so neither does what is built here, even where the original
tokenizer.json has NFC (Qwen).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mmcli.errors import UserError
from mmcli.text.bytelevel import why_not_byte_level
from mmcli.text.chat import stop_ids
from mmcli.text.definition import Definition, added_token
from mmcli.text.template import CHATML, CHATML_CONTROLS
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import QWEN2_PATTERN

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")  # digits in threes; else the same
ENDS = ("eos", "eot", "eom")  # the ids that end a reply
SPECIAL = ("bos", "pad", *ENDS)
OWN_TOKENIZER = "give the model's own tokenizer: --tokenizer DIR with its tokenizer.json"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}


SMOLLM = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(True)]}
# tokenizer.ggml.pre -> the pre-tokenizer of the original tokenizer.json
PRETOKENIZERS: Mapping[str, dict[str, Any]] = {
    "gpt-2": _byte_level(True),
    "smollm": SMOLLM,
    "qwen2": _split(QWEN2_PATTERN),
    "llama-bpe": _split(LLAMA3_PATTERN),
}


def gguf_tokenizer(path: Path, fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with its chat template; further ids that end a reply (`eot`, `eom`) are its `more_eos_ids`.

    Raises:
        UserError: no byte-level BPE, an unknown pre-tokenizer, or a list that is missing or broken, by its key.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        what = f"{path}: tokenizer.ggml.model = {kind!r} is not byte-level BPE (gpt2)"
        raise UserError(what, OWN_TOKENIZER)
    pre = fields.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PRETOKENIZERS:
        what = f"{path}: tokenizer.ggml.pre = {pre!r} is not one of {', '.join(PRETOKENIZERS)}"
        raise UserError(what, OWN_TOKENIZER)
    tokens, kinds, merges = _lists(path, fields)
    named = {id: token for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    special = {name: _special(path, fields, name, named) for name in SPECIAL}
    added = [
        added_token(token, id, special=kinds[id] in (UNKNOWN, CONTROL))
        for id, token in named.items()
        if kinds[id] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    known = {token["content"] for token in added}
    for token in dict.fromkeys(special.values()):
        if token is not None and token not in known:
            added.append(added_token(token, tokens.index(token), special=True))
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe",
        "vocab": {token: id for id, token in named.items()}, "merges": merges,
    }  # fmt: skip
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": PRETOKENIZERS[pre], "post_processor": _post_processor(fields, special["bos"], tokens),
        "decoder": _byte_level(True), "model": model,
    }  # fmt: skip
    reason = why_not_byte_level(definition)
    if reason is not None:
        raise UserError(f"{path}: tokenizer.ggml.tokens is not a byte-level BPE: {reason}", OWN_TOKENIZER)
    config = {f"{name}_token": special[name] for name in ("bos", "eos", "pad")}
    settings = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    template = fields.get("tokenizer.chat_template")
    if template is None and {token["content"] for token in added}.issuperset(CHATML_CONTROLS):
        template = CHATML
    ends = [tokens.index(token) for token in (special[name] for name in ENDS) if token is not None]
    more = tuple(dict.fromkeys(ends)) if len(set(ends)) > 1 else ()
    return Tokenizer(Definition(definition, {**config, **settings}, template, more))


def _lists(path: Path, fields: Mapping[str, Any]) -> tuple[list[str], list[int], list[list[str]]]:
    """(tokens, their types, merges), each as long as it has to be."""
    tokens = fields.get("tokenizer.ggml.tokens")
    lines = fields.get("tokenizer.ggml.merges")
    for key, value in (("tokens", tokens), ("merges", lines)):
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UserError(f"{path} has no list of texts tokenizer.ggml.{key}", OWN_TOKENIZER)
    assert isinstance(tokens, list) and isinstance(lines, list)
    kinds = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.token_type is not as long as the tokens", OWN_TOKENIZER)
    if len(set(tokens)) != len(tokens):
        twice = next(token for id, token in enumerate(tokens) if tokens.index(token) != id)
        raise UserError(f"{path}: tokenizer.ggml.tokens holds {twice!r} twice", OWN_TOKENIZER)
    merges = [line.split(" ") for line in lines]
    broken = next((line for line, merge in zip(lines, merges, strict=True) if len(merge) != 2), None)
    if broken is not None:
        raise UserError(f"{path}: tokenizer.ggml.merges holds {broken!r}, which is not a pair", OWN_TOKENIZER)
    return tokens, kinds, merges


def _special(path: Path, fields: Mapping[str, Any], name: str, named: Mapping[int, str]) -> str | None:
    key = _id_key(name)
    id = fields.get(key)
    if id is None:
        return None
    if id not in named:
        raise UserError(f"{path}: {key} = {id} is not a token", OWN_TOKENIZER)
    return named[id]


def _id_key(name: str) -> str:
    return f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id"


def tokenizer_fields(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The metadata of a tokenizer, for a model whose embedding has `rows` rows: llama.cpp wants a token for each.

    Raises:
        UserError: a pre-tokenizer, normalizer or number of ends that a GGUF file cannot say.
    """
    definition = tokenizer.definition.tokenizer
    added = {token["id"]: token for token in definition["added_tokens"]}
    names = {id: token for token, id in definition["model"]["vocab"].items()}
    names |= {id: token["content"] for id, token in added.items()}
    kinds = {id: CONTROL if token["special"] else USER_DEFINED for id, token in added.items()}
    merges = (each if isinstance(each, str) else " ".join(each) for each in definition["model"]["merges"])
    starts, ends = _framed(definition, tokenizer)
    fields = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre_tokenizer_name(definition),
        "tokenizer.ggml.tokens": [names.get(id, f"[PAD{id}]") for id in range(rows)],
        "tokenizer.ggml.token_type": [kinds.get(id, NORMAL if id in names else UNUSED) for id in range(rows)],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.add_bos_token": starts, "tokenizer.ggml.add_eos_token": ends,
    }  # fmt: skip
    fields |= {_id_key(name): id for name, id in _special_ids(tokenizer).items()}
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of bos, pad and the ends of a reply, those that there are."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    ids["pad"] = tokenizer.pad_id if tokenizer.definition.config.get("pad_token") is not None else None
    others = sorted(stop_ids(tokenizer) - {tokenizer.eos_id})
    if len(others) >= len(ENDS):  # pad ends a reply by itself
        others = [id for id in others if id != tokenizer.pad_id]
    if len(others) >= len(ENDS):
        shown = ", ".join(str(tokenizer.control_token(id)) for id in others)
        what = f"the tokenizer ends replies at more tokens than a GGUF file can name: eos, {shown}"
        raise UserError(what, "take the ends out of generation_config.json that the model does not write")
    found = {**ids, **dict(zip(ENDS[1:], others, strict=False))}
    return {name: id for name, id in found.items() if id is not None}


def _framed(definition: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether tokenizer.json puts (bos before, eos after) a text, as other programs encode it."""
    if definition.get("post_processor") is None:
        return False, False
    ids = tokenizers.Tokenizer.from_str(json.dumps(definition)).encode("a").ids
    return ids[:1] == [tokenizer.bos_id], len(ids) > 1 and ids[-1] == tokenizer.eos_id


def _pre_tokenizer_name(definition: Mapping[str, Any]) -> str:
    """`tokenizer.ggml.pre`: llama.cpp's name for how a text is cut and normalized."""
    normalizer = (definition.get("normalizer") or {"type": "NFC"})["type"]
    found, merged = _essence(definition.get("pre_tokenizer")), bool(definition["model"].get("ignore_merges"))
    for name, known in PRETOKENIZERS.items():
        if found == _essence(known) and merged == (name == "llama-bpe") and normalizer == "NFC":
            return name
    what = (
        f"the tokenizer cuts texts in a way that llama.cpp has no name for (it is none of {', '.join(PRETOKENIZERS)})"
    )
    raise UserError(what, "run the model with mmcli, or for other programs: mmcli export onnx")


def _essence(part: Any) -> Any:
    """A pre-tokenizer without what changes no token."""
    if isinstance(part, list):
        return [_essence(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    default = {"use_regex": True} if part.get("type") == "ByteLevel" else {}
    return default | {key: _essence(value) for key, value in part.items() if key != "trim_offsets"}


def _post_processor(fields: Mapping[str, Any], bos: str | None, tokens: list[str]) -> dict[str, Any] | None:
    """The post-processor that adds bos to a text, where the file asks for it."""
    if not fields.get("tokenizer.ggml.add_bos_token") or bos is None:
        return None
    start, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    ids = {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, *second],
        "special_tokens": ids,
    }
