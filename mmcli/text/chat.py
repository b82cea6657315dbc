"""Conversations to token ids, with a mark for each id whether the model is trained on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.text.chat_format import OTHER_TEMPLATE, ChatFormat, chat_format, generation_prompt
from mmcli.text.messages import hide_messages, hide_tools
from mmcli.text.opaque import Plain, Texts
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.turns import Turn, after_reasoning, find_turns

MAX_LITERALS = 4096  # ids of template text that are remembered for a tokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids [T], and [T] whether the model is trained to write each."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class _Layout:
    """A rendered conversation: marks for its texts, and what stands where."""

    rendered: str
    texts: Texts
    found: list[re.Match[str]]  # the marks and control tokens
    messages: list[dict[str, Any]]
    turns: list[Turn]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    train_on: Literal["all", "last"] = "all",
    train_reasoning: bool = True,
    thinking: bool | None = None,
) -> Encoded:
    """A conversation as the tokenizer's chat template writes it, one id list.

    Control ids come from the template alone: the template is rendered with marks in place of the person's texts
    (contents, names, arguments, tools), and the texts are put in afterwards and encoded as text. Where the template
    finds something in a text or changes one, the real texts are rendered too, and the two have to be the same.
    Everything between two control tokens is encoded in one call, with one cut where the generation prompt ends, so
    the ids of a prompt are a prefix of those of its continuation.

    Trained are, of every turn of the assistant (or the last one), the ids from after the generation prompt through
    the token that ends the turn; of a message with `train` False none. Without `train_reasoning` they begin after the
    control token that ends the turn's reasoning, where the template writes that; the ids are the same.

    Args:
        thinking: whether the model is to reason, for templates with a switch; None: as the template does by itself.

    Raises:
        UserError: a message of a wrong form (by index), no usable template, or a template that refuses the
            conversation, leaves a text out, changes one in a way that is not followed, does not show where the
            assistant's turns are, has no switch for `thinking`, or, without `train_reasoning`, does not show where a
            reasoning ends.
    """
    if train_on not in ("all", "last"):
        raise UserError(f'train_on = "{train_on}" is unknown', 'give "all" or "last"')
    chat = chat_format(tokenizer)
    layout = _lay_out(chat, messages, tools, add_generation_prompt, thinking)
    rendered, turns = layout.rendered, layout.turns
    wanted = turns if train_on == "all" else turns[-1:]
    wanted = [turn for turn in wanted if messages[turn.message].get("train") is not False]
    starts = {
        turn.start
        if train_reasoning
        else after_reasoning(chat, turn, layout.messages[turn.message], layout.texts, layout.found): turn
        for turn in wanted
    }
    edges = sorted({0, len(rendered), *starts, *(edge for turn in turns for edge in (turn.start, turn.end))})
    ids: list[int] = []
    trained: list[bool] = []
    for start, end in pairwise(edges):
        part = _encode(tokenizer, chat, layout, start, end)
        ids += part
        trained += [start in starts] * len(part)
        if start in starts and not starts[start].stop:
            trained[-1] = False  # chat goes on after this token, so it ends no reply
    if turns and turns[-1].closing is not None:
        ids.append(turns[-1].closing)
        trained.append(turns[-1] in wanted)
    return Encoded(ids, trained)


def shows_reasoning(tokenizer: Tokenizer) -> bool:
    """True if the tokenizer's chat template writes a reply's reasoning.

    Raises:
        UserError: the template cannot be used.
    """
    return chat_format(tokenizer).shows_reasoning


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids at which a reply is over: eos, the tokens that end a turn, and the end of a text (pad).

    Chat, server and evaluation stop at these, and generation_config.json and ONNX folders list them. A chat template
    that cannot be used adds none: a model may continue texts without it.
    """
    stops = {tokenizer.eos_id, *tokenizer.definition.more_eos_ids}
    if tokenizer.control_token(tokenizer.pad_id) is not None:
        stops.add(tokenizer.pad_id)
    with suppress(UserError):
        stops |= chat_format(tokenizer).stops
    return frozenset(id for id in stops if id is not None)


def check_switch(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose chat template has no switch for reasoning.

    Raises:
        UserError: it has none, or the template cannot be used.
    """
    generation_prompt(chat_format(tokenizer), True)


Conversation = tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]


def prompt_mismatch(tokenizer: Tokenizer, conversations: Iterable[Conversation]) -> str | None:
    """Why chat asks for replies otherwise than these conversations (messages, tools) train them, or None.

    A model learns to continue what stands before a reply in its training rows. Where a template writes something else
    there than at the end of a prompt, such as an empty reasoning, what was trained may never come out.

    Raises:
        UserError: no usable chat template. Conversations that it does not take are passed over.
    """
    chat = chat_format(tokenizer)
    for messages, tools in conversations:
        with suppress(UserError):
            layout = _lay_out(chat, messages, tools, False, None)
            for turn in layout.turns:
                if not turn.prompted:
                    return _not_prompted(chat, layout, turn)
            last = layout.turns[-1].message if layout.turns else 0
            if last:
                prompt = encode_chat(tokenizer, messages[:last], tools=tools, add_generation_prompt=True).ids
                if encode_chat(tokenizer, messages, tools=tools).ids[: len(prompt)] != prompt:
                    return "the chat template writes the messages before a reply otherwise in chat than in training"
    return None


def _not_prompted(chat: ChatFormat, layout: _Layout, turn: Turn) -> str:
    start = layout.rendered.rindex(chat.header, 0, turn.start)
    row = layout.texts.reveal(layout.rendered[start : turn.end])[: len(chat.generation_prompt) + 10]
    what = (
        f"chat begins a reply with {chat.generation_prompt!r}, and training rows with {row!r}: what is trained there "
    )
    switched = [
        f"--{'' if thinking else 'no-'}think"
        for thinking in (True, False)
        if chat.switch and layout.rendered.startswith(generation_prompt(chat, thinking)[0], start)
    ]
    return what + ("is what chat asks for with " + switched[0] if switched else "may not come out in chat")


def _lay_out(
    chat: ChatFormat,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    is_prompt: bool,
    thinking: bool | None,
) -> _Layout:
    texts = Texts()
    hidden = hide_messages(messages, texts)
    rendered = chat.render(hidden, hide_tools(tools, texts), is_prompt, texts, thinking=thinking)
    found = list(chat.scanner.finditer(rendered))
    _refuse_lost(chat, texts, found)
    if texts.inspected:
        _compare(chat, rendered, texts, messages, tools, is_prompt, thinking)
    turns = find_turns(chat, rendered, found, hidden, texts, is_prompt=is_prompt)
    return _Layout(rendered, texts, found, hidden, turns)


def _refuse_lost(chat: ChatFormat, texts: Texts, found: list[re.Match[str]]) -> None:
    lost = texts.lost({int(match[1]) for match in found if match[1] is not None})
    if not lost:
        return
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    if lost[0].endswith(".reasoning_content") and not chat.shows_reasoning:
        what = f"the chat template loses text: {lost[0]}{more} (it shows no reasoning)"
        raise UserError(what, f"write it into the content, between <think> and </think>, or {OTHER_TEMPLATE}")
    raise UserError(f"the chat template loses text: {lost[0]}{more}", f"leave that out, or {OTHER_TEMPLATE}")


def _compare(
    chat: ChatFormat,
    rendered: str,
    texts: Texts,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    is_prompt: bool,
    thinking: bool | None,
) -> None:
    """Refuse a template that makes something else of the real texts than of their marks."""
    plain = Plain()
    plain.now = texts.now
    real = chat.render(hide_messages(messages, plain), hide_tools(tools, plain), is_prompt, plain, thinking=thinking)
    ours = texts.reveal(rendered)
    if ours != real:
        at = next((at for at, (one, other) in enumerate(zip(ours, real, strict=False)) if one != other), len(real))
        what = f"the chat template rewrites text in a way that is not followed: {real[max(at - 20, 0) : at + 20]!r}"
        raise UserError(what, f"change that text, or {OTHER_TEMPLATE}")


def _encode(tokenizer: Tokenizer, chat: ChatFormat, layout: _Layout, start: int, end: int) -> list[int]:
    """The ids of `rendered[start:end]`, its marks replaced by their texts."""
    ids: list[int] = []
    rendered, texts = layout.rendered, layout.texts.texts
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
