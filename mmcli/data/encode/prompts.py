"""Whether chat asks a model for replies as its training rows hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from mmcli.data.record import Record, RecordError, Rejected
from mmcli.data.records.conversations import as_chat, split_reasoning
from mmcli.data.records.kinds import is_chat
from mmcli.data.records.preferences import as_preference
from mmcli.text.chat import Conversation, prompt_mismatch, shows_reasoning
from mmcli.text.tokenizer import Tokenizer

SAMPLE = 32  # records looked at


def mismatch_of_records(kind: str, records: Iterable[Record | Rejected], tokenizer: Tokenizer) -> str | None:
    """Why chat would ask for replies otherwise than the first of these records train them; None where it would not.

    Raises:
        UserError: the tokenizer has no usable chat template.
    """
    if kind not in ("chat", "preference", "mixed"):
        return None
    if kind == "mixed":
        records, kind = (each for each in records if isinstance(each, Record) and is_chat(each.value)), "chat"
    return prompt_mismatch(tokenizer, _conversations(kind, itertools.islice(records, SAMPLE), tokenizer))


def _conversations(kind: str, records: Iterable[Record | Rejected], tokenizer: Tokenizer) -> Iterator[Conversation]:
    as_shown = split_reasoning if shows_reasoning(tokenizer) else list
    for record in records:
        if isinstance(record, Rejected):
            continue
        try:
            if kind == "chat":
                chat = as_chat(record)
                yield as_shown(chat.messages), chat.tools
            else:
                pair = as_preference(record)
                yield as_shown([*pair.prompt, *pair.chosen]), pair.tools
        except RecordError:
            continue
