"""What the files of a tokenizer say: tokenizer.json, tokenizer_config.json and their neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.errors import UserError
from mmcli.text.bytelevel import why_not_byte_level
from mmcli.text.template import CHATML, CHATML_CONTROLS

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Tried for the end of a text when no file names it.
COMMON_EOS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
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
    _check(tokenizer, file)
    # A file of another name stands alone: what lies beside it may belong to another tokenizer.
    folder = file.parent if file.name == TOKENIZER_FILE else None
    config = _beside(folder, CONFIG_FILE)
    generation = _beside(folder, "generation_config.json")
    ids = {token: id for token, id in tokenizer["model"]["vocab"].items()}
    added = list(tokenizer.get("added_tokens") or [])
    for token in _declared(config):
        if token["content"] not in {known["content"] for known in added}:
            added.append(token)
    ids.update((token["content"], token["id"]) for token in added)
    sources = [config, _beside(folder, "special_tokens_map.json")]
    special = {name: _special(name, sources, ids) for name in ("bos", "eos", "pad")}
    by_id = {id: token for token, id in ids.items()}
    for name in special:
        if not any(f"{name}_token" in source for source in sources):
            special[name] = _from_ids(name, [generation, _beside(folder, "config.json")], by_id)
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
    reason = why_not_byte_level(tokenizer)
    if reason is not None:
        raise UserError(
            f"{file} is not a byte-level BPE tokenizer: {reason}", "give one of that kind (GPT-2, Llama 3, Qwen)"
        )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", MAKE_ONE) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}", MAKE_ONE) from None


def _beside(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON object beside the tokenizer, empty if there is none."""
    if folder is None or not (folder / name).is_file():
        return {}
    value = _read_json(folder / name)
    if not isinstance(value, dict):
        raise UserError(f"{folder / name} is not a JSON object", "mend or remove that file")
    return value


def _declared(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Added tokens that only tokenizer_config.json names."""
    for id, token in (config.get("added_tokens_decoder") or {}).items():
        yield {**added_token(token["content"], int(id), special=False), **token}


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
