"""The forms of tokenizer.json that engine/tokenizer.js reads."""

from __future__ import annotations

from typing import Any

from mmcli.errors import UserError
from mmcli.text.bytelevel import unwritable_characters
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import QWEN2_PATTERN

# Split patterns that JavaScript's regular expressions cut alike: Qwen2's, and Llama 3's, with up to three digits.
PATTERNS = (QWEN2_PATTERN, QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))


def refuse_unreadable(tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer that the browser's engine would not follow exactly."""
    definition = tokenizer.definition.tokenizer
    words = [
        token["content"] for token in definition["added_tokens"] if token["content"] not in tokenizer.control_tokens
    ]
    normalizer = definition.get("normalizer")
    if words:
        reason = f"it has added words, such as {words[0]!r}"
    elif normalizer is not None and normalizer.get("type") != "NFC":
        reason = f"its normalizer is {normalizer.get('type')}"
    elif not _is_readable(definition.get("pre_tokenizer") or {}):
        reason = f"its pre-tokenizer is {str(definition.get('pre_tokenizer'))[:120]}"
    else:
        return
    fix = "serve the model instead (mmcli serve), or train one with a tokenizer of `mmcli tokenizer train`"
    raise UserError(f"the browser's engine cannot follow this tokenizer: {reason}", fix)


def _is_readable(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if kind == "Sequence":
        return bool(part["pretokenizers"]) and all(_is_readable(each) for each in part["pretokenizers"])
    if kind == "Split":
        isolated = part.get("behavior") == "Isolated" and not part.get("invert")
        return isolated and part["pattern"].get("Regex") in PATTERNS
    if kind == "Digits":
        return bool(part.get("individual_digits"))
    return kind == "ByteLevel" and not part.get("add_prefix_space")


def description(tokenizer: Tokenizer) -> dict[str, Any]:
    """What engine/tokenizer.js is told beside tokenizer.json."""
    vocab = tokenizer.definition.tokenizer["model"]["vocab"]
    return {"controls": tokenizer.control_tokens, "unwritable": unwritable_characters(vocab)}
