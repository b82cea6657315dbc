"""Comparison of an exported tokenizer with the original: ids, texts, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcli.errors import MmcliError, UserError
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "What is a cloud? <|im_end|>"},
    {"role": "assistant", "content": "Water, high in the air.\n云是水。"},
    {"role": "user", "content": "  Thanks 🙂"},
]


def check_tokenizer(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """The number of texts and conversations that the exported tokenizer encodes and decodes like the original.

    Raises:
        MmcliError: one that it does not.
    """
    return compare_tokenizers(Tokenizer.load(folder), tokenizer, texts)


def compare_tokenizers(exported: Tokenizer, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """The same of a tokenizer that was read.

    Raises:
        MmcliError: a text or conversation that it does not encode and decode like the original.
    """

    def refuse(what: str) -> MmcliError:
        return MmcliError(f"the exported tokenizer {what}", "nothing was kept; report this with the tokenizer's files")

    if exported.chat_template != tokenizer.chat_template:
        raise refuse("has another chat template than the model's")
    if stop_ids(exported) != stop_ids(tokenizer) or exported.bos_id != tokenizer.bos_id:
        raise refuse("starts or ends texts with other tokens than the model's")
    for text in texts:
        ids = tokenizer.encode_document(text)
        if exported.encode_document(text) != ids:
            raise refuse(f'encodes "{text[:40]}" to other ids than the model\'s')
        if exported.decode(ids) != tokenizer.decode(ids):
            raise refuse(f'decodes the ids of "{text[:40]}" to another text')
    conversation = _conversation_ids(tokenizer)
    if _conversation_ids(exported) != conversation:
        raise refuse("renders a conversation to other ids than the model's")
    return len(texts) + (conversation is not None)


def _conversation_ids(tokenizer: Tokenizer) -> list[int] | None:
    """The ids of a conversation; without its system message where the template knows none; None without a template."""
    if tokenizer.chat_template is None:
        return None
    for messages in (CONVERSATION, CONVERSATION[1:]):
        try:
            return encode_chat(tokenizer, messages, add_generation_prompt=True).ids
        except UserError:
            continue
    return None
