"""Prompts with the answers that the data gives them, and which of them a step has. No torch here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mmcli.api import (
    DataConfig,
    OpenedData,
    Record,
    RecordError,
    Rejected,
    Reporter,
    Sources,
    Tokenizer,
    UserError,
    as_chat,
    encode_chat,
)

Message = Mapping[str, Any]
REASONS = 3  # why records are left out: so many reasons are told


@dataclass(frozen=True)
class Prompt:
    """What the model answers.

    Attributes:
        ids: through the chat template, up to where the reply begins.
        messages: the same as messages, the last one the user's.
        answer: the last reply of the conversation.
        tools: schemas of the functions that it may call.
        record: the fields of the record.
        place: file and line of the record.
    """

    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[Message, ...] | None
    record: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class PromptData:
    """Prompts to train on, and those held out, which have no question in common."""

    training: Sequence[Prompt]
    held_out: Sequence[Prompt]


def read_prompt(record: Record, tokenizer: Tokenizer) -> Prompt:
    """The last question of a conversation, with what stands before it, and the answer that ends it.

    Raises:
        RecordError: it is no conversation, or does not end in an answer to a user's message.
    """
    chat = as_chat(record)
    asked = max((n for n, message in enumerate(chat.messages) if message["role"] == "user"), default=None)
    last = chat.messages[-1]
    if asked is None or last["role"] != "assistant" or asked == len(chat.messages) - 1:
        raise RecordError("it does not end in an answer to a message of the user")
    if not str(last["content"]).strip():
        raise RecordError("its answer has no text")
    messages = tuple(chat.messages[: asked + 1])
    try:
        ids = encode_chat(tokenizer, messages, tools=chat.tools, add_generation_prompt=True).ids
    except UserError as error:
        raise RecordError(f"the chat template does not take it: {error.what}") from None
    tools = None if chat.tools is None else tuple(chat.tools)
    place = f"{record.file}:{record.line}"
    return Prompt(tuple(ids), messages, str(last["content"]), tools, record.value, place)


def read_prompts(sources: Sources, tokenizer: Tokenizer, longest: int, report: Reporter) -> list[Prompt]:
    """Every prompt that can be used; how many records are left out, and why, is told.

    Args:
        longest: tokens of a prompt, at most.

    Raises:
        UserError: there is none; with `strict`, a record that cannot be used.
    """
    prompts: list[Prompt] = []
    reasons: Counter[str] = Counter()
    first = ""
    for item in sources.records():
        reason = item.reason if isinstance(item, Rejected) else ""
        if isinstance(item, Record):
            try:
                prompt = read_prompt(item, tokenizer)
            except RecordError as error:
                reason = str(error)
            else:
                if len(prompt.ids) <= longest:
                    prompts.append(prompt)
                    continue
                reason = f"a prompt of more than {longest} tokens"
        place = f"{item.file}:{item.line} {reason}"
        if sources.strict:
            raise UserError(place, "fix that record, or run without --strict to skip such records")
        first = first or place
        reasons[reason.partition(": ")[0]] += 1
    if not prompts:
        why = f": {first}" if first else ""
        raise UserError(f"there is no prompt with an answer in the data{why}", "give conversations that end in one")
    if reasons:
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(REASONS))
        report.warn(f"{reasons.total():,} of {reasons.total() + len(prompts):,} records left out ({told}); {first}")
    return prompts


def split_prompts(
    prompts: Sequence[Prompt], data: DataConfig, seed: int, reply_tokens: int
) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out) by a hash of what is asked, so that a repeated question is in one part alone.

    Held out are about `val_fraction` of the questions, as many as `val_tokens` allow with a reply of `reply_tokens`
    each. Nothing is, where that would leave less than two prompts to train on.
    """
    share = round(data.val_fraction * 2**32)
    draws = [_draw(seed, prompt.ids) for prompt in prompts]
    held = [prompt for prompt, draw in zip(prompts, draws, strict=True) if draw < share]
    training = [prompt for prompt, draw in zip(prompts, draws, strict=True) if draw >= share]
    if len(training) < 2:
        return list(prompts), []
    return training, bounded(held, data.val_tokens, reply_tokens)


def bounded(prompts: Sequence[Prompt], tokens: int, reply_tokens: int) -> list[Prompt]:
    """As many different prompts, from the first on, as fit into `tokens` with a reply of `reply_tokens` each."""
    kept: list[Prompt] = []
    seen: set[tuple[int, ...]] = set()
    for prompt in prompts:
        tokens -= 0 if prompt.ids in seen else len(prompt.ids) + reply_tokens
        if tokens < 0:
            break
        if prompt.ids not in seen:
            seen.add(prompt.ids)
            kept.append(prompt)
    return kept


def open_prompts(
    data: OpenedData, tokenizer: Tokenizer, seed: int, longest: int, reply_tokens: int, report: Reporter
) -> PromptData:
    """The prompts of a run: those of `--val` are held out, or a part of the data.

    Raises:
        UserError: see `read_prompts`.
    """
    report.note(f"data: {data.train.describe}")
    prompts = read_prompts(replace(data.train, strict=data.config.strict), tokenizer, longest, report)
    if data.val is not None:
        held = bounded(read_prompts(data.val, tokenizer, longest, report), data.config.val_tokens, reply_tokens)
        training = prompts
    else:
        training, held = split_prompts(prompts, data.config, seed, reply_tokens)
    report.note(f"{len(training):,} prompts" + (f"; held out: {len(held):,}" if held else ""))
    return PromptData(training, held)


class PromptOrder:
    """Which prompts a step has: all of them in a new order for each epoch, a function of (seed, step)."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self._count, self._per_step, self._seed = count, per_step, seed
        self._order = lru_cache(maxsize=2)(self._draw)

    def numbers(self, step: int) -> list[int]:
        """The prompts of step `step` (from 0) by their numbers."""
        return list(self._numbers(step))

    def _numbers(self, step: int) -> Iterator[int]:
        for place in range(step * self._per_step, (step + 1) * self._per_step):
            epoch, within = divmod(place, self._count)
            yield int(self._order(epoch)[within])

    def _draw(self, epoch: int) -> np.ndarray:
        draws = np.random.Philox(key=[self._seed % 2**64, epoch + 1]).random_raw(self._count)
        return np.argsort(draws, kind="stable")


def _draw(seed: int, ids: Sequence[int]) -> int:
    """32 bits of a prompt and the seed."""
    digest = hashlib.sha256(f"{seed}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
