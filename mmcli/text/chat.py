"""Conversations to token ids, with a mark for each id whether the model is trained on it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.text.chat_format import OTHER_TEMPLATE, ChatFormat, chat_format
from mmcli.text.messages import REASONING, hide_messages, hide_tools
from mmcli.text.opaque import MARK, Texts
from mmcli.text.tokenizer import Tokenizer

MAX_LITERALS = 4096  # ids of template text that are remembered for a tokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids [T], and [T] whether the model is trained to write each."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class _Turn:
    """A turn of the assistant in the rendered text, from after the generation prompt through its end token."""

    message: int
    start: int
    end: int


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    train_on: Literal["all", "last"] = "all",
    train_reasoning: bool = True,
) -> Encoded:
    """A conversation as the tokenizer's chat template writes it, one id list.

    Control ids come from the template alone: the template is rendered with marks in place of the person's texts
    (contents, names, arguments, tools), and the texts are put in afterwards and encoded as text. To the template a
    text is thus a closed box; it can strip it, write it as JSON, or leave it out, but not look inside. Everything
    between two control tokens is encoded in one call, with one cut where the generation prompt ends, so the ids of a
    prompt are a prefix of those of its continuation.

    Trained are, of every turn of the assistant (or the last one), the ids from after the generation prompt through
    the token that ends the turn. Without `train_reasoning` they begin after the control token that ends the turn's
    reasoning, where the template writes that; the ids are the same.

    Raises:
        UserError: a message of a wrong form (by index), no usable template, or a template that refuses the
            conversation, leaves a text out, does not show where the assistant's turns are, or, without
            `train_reasoning`, where a reasoning ends.
    """
    if train_on not in ("all", "last"):
        raise UserError(f'train_on = "{train_on}" is unknown', 'give "all" or "last"')
    chat = chat_format(tokenizer)
    texts = Texts()
    hidden = hide_messages(messages, texts)
    rendered = chat.render(hidden, hide_tools(tools, texts), add_generation_prompt, texts)
    found = list(chat.scanner.finditer(rendered))
    _refuse_lost(texts, found)
    answers = [index for index, message in enumerate(hidden) if message["role"] == "assistant"]
    starts = _starts(chat, rendered, len(answers) + add_generation_prompt)
    ends = [match for match in found if chat.control(match) == chat.turn_end]
    turns = [_Turn(message, start, _end(ends, start)) for message, start in zip(answers, starts, strict=False)]
    _check_turns(turns, texts, found)
    trained_turns = turns if train_on == "all" else turns[-1:]
    if train_reasoning:
        trained_starts = {turn.start for turn in trained_turns}
    else:
        trained_starts = {_after_reasoning(chat, turn, hidden, texts, found) for turn in trained_turns}
    edges = sorted({0, len(rendered), *starts, *trained_starts, *(turn.end for turn in turns)})
    ids: list[int] = []
    trained: list[bool] = []
    for start, end in pairwise(edges):
        part = _encode(tokenizer, chat, rendered, start, end, texts.texts)
        ids += part
        trained += [start in trained_starts] * len(part)
    return Encoded(ids, trained)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids at which a reply is over: eos, the token that ends a turn, and the end of a text (pad).

    A chat template that cannot be used adds none: a model may continue texts without it.
    """
    stops = {tokenizer.eos_id, *tokenizer.definition.more_eos_ids}
    if tokenizer.control_token(tokenizer.pad_id) is not None:
        stops.add(tokenizer.pad_id)
    with suppress(UserError):
        stops.add(chat_format(tokenizer).turn_end)
    return frozenset(id for id in stops if id is not None)


def _refuse_lost(texts: Texts, found: list[re.Match[str]]) -> None:
    lost = texts.lost({int(match[1]) for match in found if match[1] is not None})
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(f"the chat template loses text: {lost[0]}{more}", f"leave that out, or {OTHER_TEMPLATE}")


def _starts(chat: ChatFormat, rendered: str, expected: int) -> list[int]:
    """Where the assistant's turns begin in the rendered text: after each generation prompt.

    Where a prompt also closes an empty reasoning, a turn that reasons begins with a part of it, the stem.
    """
    prompt = chat.generation_prompt
    starts = [at + len(prompt) for at in _occurrences(prompt, rendered)]
    if len(starts) != expected and chat.stem:
        places = _occurrences(chat.stem, rendered)
        starts = [at + len(prompt if rendered.startswith(prompt, at) else chat.stem) for at in places]
    if len(starts) != expected:
        what = f"the chat template shows {len(starts)} turns of the assistant where there are {expected}"
        raise UserError(what, OTHER_TEMPLATE)
    return starts


def _occurrences(part: str, whole: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), whole)]


def _end(ends: list[re.Match[str]], start: int) -> int:
    """Where the turn that begins at `start` ends: after the next token that ends one."""
    following = bisect_left(ends, start, key=re.Match.start)
    if following == len(ends):
        raise UserError("the chat template leaves a turn of the assistant without its end token", OTHER_TEMPLATE)
    return ends[following].end()


def _check_turns(turns: list[_Turn], texts: Texts, found: list[re.Match[str]]) -> None:
    """Refuse a template where a turn of the assistant does not hold its own texts and no others."""
    turn_of = {turn.message: turn for turn in turns}
    starts = [turn.start for turn in turns]
    for match in found:
        owner = None if match[1] is None else texts.owners[int(match[1])]
        if owner is None:
            continue
        before = bisect_right(starts, match.start())
        around = turns[before - 1] if before and match.start() < turns[before - 1].end else None
        if around is not turn_of.get(owner):
            raise UserError(f"the chat template mixes messages[{owner}] with another turn", OTHER_TEMPLATE)


def _after_reasoning(
    chat: ChatFormat, turn: _Turn, hidden: list[dict[str, Any]], texts: Texts, found: list[re.Match[str]]
) -> int:
    """Where the reply of a turn begins: after the control token that ends its reasoning, if it shows one."""
    given = [hidden[turn.message].get(name) for name in REASONING]
    marks = [MARK.fullmatch(value) for value in given if isinstance(value, str)]
    reasoning = {int(mark[1]) for mark in marks if mark is not None}
    first, last = (bisect_left(found, place, key=re.Match.start) for place in (turn.start, turn.end))
    for at in reversed(range(first, last)):
        mark = found[at]
        if mark[1] is None or reasoning.isdisjoint(texts.origins([int(mark[1])])):
            continue
        following = found[at + 1]  # at the latest the turn's end token
        # A template that spells the end as text may still have a control token later on, such as that of a call.
        spelled = mark.string[mark.end() : following.start()].strip()
        if spelled or chat.control(following) in (None, chat.turn_end):
            raise UserError("the chat template does not mark the end of reasoning with a control token", OTHER_TEMPLATE)
        return following.end()
    return turn.start


def _encode(tokenizer: Tokenizer, chat: ChatFormat, rendered: str, start: int, end: int, texts: list[str]) -> list[int]:
    """The ids of `rendered[start:end]`, its marks replaced by their texts."""
    ids: list[int] = []
    pending: list[str] = []  # what stands since the last control token
    literal = True  # so far only text of the template
    for match in chat.scanner.finditer(rendered, start, end):
        if match.start() > start:
            pending.append(rendered[start : match.start()])
        start = match.end()
        control = chat.control(match)
        if control is None:
            pending.append(texts[int(match[1])])
            literal = False
        else:
            ids += _encode_between(tokenizer, chat, "".join(pending), literal)
            ids.append(control)
            pending, literal = [], True
    pending.append(rendered[start:end])
    return ids + _encode_between(tokenizer, chat, "".join(pending), literal)


def _encode_between(tokenizer: Tokenizer, chat: ChatFormat, text: str, literal: bool) -> list[int]:
    if not text:
        return []
    if not literal:
        return tokenizer.encode_text(text)
    if text not in chat.literals:
        if len(chat.literals) >= MAX_LITERALS:
            chat.literals.clear()
        chat.literals[text] = tokenizer.encode_text(text)
    return chat.literals[text]
