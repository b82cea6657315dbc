"""The files of a tokenizer: tokenizer.json, tokenizer_config.json and their neighbours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.errors import UserError
from mmcli.text.bytelevel import why_not_byte_level
from mmcli.text.template import CHATML, CHATML_CONTROLS

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_FILE, GENERATION_FILE, MODEL_FILE = "special_tokens_map.json", "generation_config.json", "config.json"
FILES = (TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE, SPECIAL_FILE, GENERATION_FILE, MODEL_FILE)  # all that are read
# Tried for the end of a text when no file names it.
COMMON_EOS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
MAX_ID = 1 << 24  # a hundred times the largest vocabularies: tables are made of this many rows
MAKE_ONE = "give a folder with tokenizer.json, or that file; `mmcli tokenizer train` makes one"


@dataclass(frozen=True)
class Definition:
    """A tokenizer as its files define it."""

    tokenizer: dict[str, Any]  # tokenizer.json, with every known control token among its added_tokens
    config: dict[str, Any]  # tokenizer_config.json; bos_token, eos_token, pad_token are a string or None
    chat_template: str | None
    more_eos_ids: tuple[int, ...] = ()  # further ids that end a reply, of generation_config.json


def read_definition(path: Path) -> Definition:
    """The definition in a folder with tokenizer.json, or in that file.

    The chat template comes from chat_template.jinja, else tokenizer_config.json, else it is our ChatML if the
    tokenizer has its control tokens; bos, eos and pad from
    tokenizer_config.json, else special_tokens_map.json, else the ids in generation_config.json or config.json.

    Raises:
        UserError: a file is missing or broken, or it is not a byte-level BPE tokenizer.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} has no {TOKENIZER_FILE}" if path.is_dir() else f"{path} does not exist", MAKE_ONE)
    tokenizer = _read_json(file)
    try:
        _check(tokenizer, file)
    except RecursionError:
        raise UserError(f"{file} is nested too deeply", MAKE_ONE) from None
    # A file of another name stands alone: what lies beside it may belong to another tokenizer.
    folder = file.parent if file.name == TOKENIZER_FILE else None
    config = _beside(folder, CONFIG_FILE)
    generation = _beside(folder, GENERATION_FILE)
    ids = {token: id for token, id in tokenizer["model"]["vocab"].items()}
    added = list(tokenizer.get("added_tokens") or [])
    known = {token["content"] for token in added}
    added += [token for token in _declared(config, folder) if token["content"] not in known]
    _check_ids(ids, added, file)
    ids.update((token["content"], token["id"]) for token in added)
    sources = [config, _beside(folder, SPECIAL_FILE)]
    special = {name: _special(name, sources, ids) for name in ("bos", "eos", "pad")}
    by_id = {id: token for token, id in ids.items()}
    for name in special:
        if not any(f"{name}_token" in source for source in sources):
            special[name] = _from_ids(name, [generation, _beside(folder, MODEL_FILE)], by_id)
    if special["eos"] is None and not any("eos_token" in source for source in sources):
        special["eos"] = next((token for token in COMMON_EOS if token in ids), None)
    _refuse_unknown(special, ids, file)
    if special["pad"] not in ids:
        special["pad"] = None
    for content in special.values():
        if content is not None and content not in {token["content"] for token in added}:
            added.append(added_token(content, ids[content], special=True))
    config = {**config, **{f"{name}_token": content for name, content in special.items()}}
    template = _template(folder, config.pop("chat_template", None), file)
    if template is None and {token["content"] for token in added}.issuperset(CHATML_CONTROLS):
        template = CHATML
    return Definition({**tokenizer, "added_tokens": added}, config, template, _ids(generation.get("eos_token_id")))


def added_token(content: str, id: int, *, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` that matches exactly its own characters."""
    exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **exact, "special": special}


def _check(tokenizer: Any, file: Path) -> None:
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list) or not model["vocab"]:
        raise UserError(f"{file} is not a tokenizer: it has no model with a vocabulary", MAKE_ONE)
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(_is_token(token) for token in added):
        raise UserError(f"{file} is not a tokenizer: its added_tokens are not tokens with content and id", MAKE_ONE)
    reason = why_not_byte_level(tokenizer)
    if reason is not None:
        raise UserError(
            f"{file} is not a byte-level BPE tokenizer: {reason}", "give one of that kind (GPT-2, Llama 3, Qwen)"
        )


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id"))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ID


def _check_ids(vocab: Mapping[str, int], added: list[dict[str, Any]], file: Path) -> None:
    """Refuse added tokens to which the tokenizers library, and so transformers, gives other ids than the file.

    It takes the id of the vocabulary, and numbers those that are not in it one after another.
    """
    wrong = next((token for token, id in vocab.items() if not _is_id(id)), None)
    if wrong is not None:
        raise UserError(f'{file}: the token "{wrong}" has the id {vocab[wrong]!r}', f"give ids from 0 to {MAX_ID - 1}")
    given: dict[str, int] = {}
    free = len(vocab)
    for token in added:
        content, id = token["content"], token["id"]
        theirs = given.setdefault(content, vocab.get(content, free))
        free = max(free, theirs + 1)
        if theirs != id:
            what = f'{file}: the added token "{content}" has the id {id}, and the tokenizers library gives it {theirs}'
            raise UserError(what, "enter it in the vocabulary with its id, or number it anew")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", MAKE_ONE) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}", MAKE_ONE) from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply", MAKE_ONE) from None


def _beside(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON object beside the tokenizer, empty if there is none."""
    if folder is None or not (folder / name).is_file():
        return {}
    value = _read_json(folder / name)
    if not isinstance(value, dict):
        raise UserError(f"{folder / name} is not a JSON object", "fix or remove that file")
    return value


def _declared(config: Mapping[str, Any], folder: Path | None) -> list[dict[str, Any]]:
    """The added tokens that tokenizer_config.json names, by id."""
    declared = config.get("added_tokens_decoder") or {}
    tokens = []
    for id, token in declared.items() if isinstance(declared, dict) else [("?", None)]:
        number = int(id) if id.isascii() and id.isdigit() and len(id) < 12 else -1
        tokens.append({**token, "id": number} if isinstance(token, dict) else {})
        if not _is_token(tokens[-1]):
            what = f"{folder}/{CONFIG_FILE}: added_tokens_decoder has no token with content and id at {id!r}"
            raise UserError(what, "fix or remove that file")
    tokens = [{**added_token(token["content"], token["id"], special=False), **token} for token in tokens]
    return sorted(tokens, key=lambda token: int(token["id"]))


def _content(token: Any) -> str | None:
    """A token written as a string or as a table with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _special(name: str, sources: list[dict[str, Any]], ids: Mapping[str, int]) -> str | None:
    """The token that the first source with an opinion names; null is an opinion."""
    for source in sources:
        if f"{name}_token" in source:
            return _content(source[f"{name}_token"])
    return None


def _from_ids(name: str, sources: list[dict[str, Any]], by_id: Mapping[int, str]) -> str | None:
    for source in sources:
        for id in _ids(source.get(f"{name}_token_id")):
            if id in by_id:
                return by_id[id]
    return None


def _ids(value: Any) -> tuple[int, ...]:
    """One id or a list of them, as generation_config.json writes them."""
    return tuple(value) if isinstance(value, list) else () if value is None else (value,)


def _refuse_unknown(special: Mapping[str, str | None], ids: Mapping[str, int], file: Path) -> None:
    # An unknown pad token does no harm: padding is never trained on.
    for name in ("bos", "eos"):
        if special[name] is not None and special[name] not in ids:
            what = f'{name}_token "{special[name]}" is not in {file}'
            raise UserError(what, f"give {name}_token in {CONFIG_FILE} a token that the tokenizer has")


def _template(folder: Path | None, configured: Any, file: Path) -> str | None:
    if folder is not None and (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    if isinstance(configured, list):  # several named templates
        configured = {item.get("name"): item.get("template") for item in configured}.get("default")
    if configured is not None and not isinstance(configured, str):
        raise UserError(f"{file.parent / CONFIG_FILE}: chat_template is not text", "give it a Jinja template")
    return configured
