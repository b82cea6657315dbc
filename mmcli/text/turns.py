"""The turns of the assistant in a rendered conversation, found by the texts that stand in them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.errors import UserError
from mmcli.text.chat_format import OTHER_TEMPLATE, ChatFormat, shared
from mmcli.text.marked import MARK
from mmcli.text.messages import REASONING
from mmcli.text.opaque import Texts


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant in the rendered text, from where the generation prompt leaves off through its end token.

    Attributes:
        message: whose turn it is.
        start: where it begins: after what the template writes of the generation prompt here.
        end: after its end token, or the end of the text where it has none.
        prompted: the whole generation prompt stands before it.
        stop: its end token is one at which a reply is over.
        closing: the id that belongs at its end where the template writes none.
    """

    message: int
    start: int
    end: int
    prompted: bool
    stop: bool = True
    closing: int | None = None


def find_turns(
    chat: ChatFormat,
    rendered: str,
    found: Sequence[re.Match[str]],
    messages: Sequence[Mapping[str, Any]],
    texts: Texts,
    *,
    is_prompt: bool,
) -> list[Turn]:
    """The turns of the assistant, in order.

    Args:
        found: the marks and control tokens in `rendered`.
        is_prompt: the rendered text ends in the generation prompt.

    Raises:
        UserError: a turn has no beginning or no end of its own, or holds the text of another message.
    """
    owners = [None if match[1] is None else texts.owners[int(match[1])] for match in found]
    marks = [(match, owner) for match, owner in zip(found, owners, strict=True) if owner is not None]
    own: dict[int, list[re.Match[str]]] = {}
    seen: set[str] = set()
    for match, owner in marks:
        if match[1] not in seen:  # a later turn may quote it, such as a result the name of its call
            seen.add(match[1])
            own.setdefault(owner, []).append(match)
    ends = [match for match in found if chat.control(match) in chat.turn_ends]
    expected = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    turns: list[Turn] = []
    for index in expected:
        before = turns[-1].end if turns else 0
        low, high = _space_before(index, own.get(index), marks, before, len(rendered))
        if low > high:
            raise _mixed(index)
        at = rendered.find(chat.header, low, high)
        if at < 0:
            what = f"the chat template shows {len(turns)} turns of the assistant where there are {len(expected)}"
            raise UserError(what, OTHER_TEMPLATE)
        prompted = rendered.startswith(chat.generation_prompt, at)
        start = at + (len(chat.generation_prompt) if prompted else _shared(chat, rendered, at))
        is_last = index == len(messages) - 1 and not is_prompt
        turn = Turn(index, start, len(rendered), prompted)
        inside = own[index][-1].end() if index in own else start
        turns.append(_with_end(chat, turn, ends, max(inside, start), messages[index], is_last))
    _check(turns, marks)
    return turns


def _shared(chat: ChatFormat, rendered: str, at: int) -> int:
    return shared(chat.generation_prompt, rendered[at : at + len(chat.generation_prompt)], chat.scanner)


def _space_before(
    index: int, own: list[re.Match[str]] | None, marks: list[tuple[re.Match[str], int]], before: int, length: int
) -> tuple[int, int]:
    """Where the header of a message can stand: between the text before it and its own first."""
    if own:
        first = own[0].start()
        others = (match.end() for match, owner in marks if owner != index and match.end() <= first)
        return max(before, max(others, default=0)), first
    # A turn without any text stands before the text of a later message.
    earlier = (match.end() for match, owner in marks if 0 <= owner < index)
    low = max(before, max(earlier, default=0))
    return low, next((match.start() for match, owner in marks if match.start() >= low and owner > index), length)


def _with_end(
    chat: ChatFormat, turn: Turn, ends: list[re.Match[str]], inside: int, message: Mapping[str, Any], is_last: bool
) -> Turn:
    following = bisect_left(ends, inside, key=re.Match.start)
    if following < len(ends):
        stop = chat.control(ends[following]) in chat.stops
        return Turn(turn.message, turn.start, ends[following].end(), turn.prompted, stop)
    closing = chat.closing_call if message.get("tool_calls") else chat.closing
    if closing is None or not is_last:
        raise UserError("the chat template leaves a turn of the assistant without its end token", OTHER_TEMPLATE)
    return Turn(turn.message, turn.start, turn.end, turn.prompted, closing=closing)


def _check(turns: list[Turn], marks: list[tuple[re.Match[str], int]]) -> None:
    """Refuse a template where a turn of the assistant does not hold its own texts and no others."""
    turn_of = {turn.message: turn for turn in turns}
    starts = [turn.start for turn in turns]
    seen: set[str] = set()
    for match, owner in marks:
        before = bisect_left(starts, match.start() + 1)
        around = turns[before - 1] if before and match.start() < turns[before - 1].end else None
        quoted = around is None and match[1] in seen
        if around is not turn_of.get(owner) and not quoted:
            raise _mixed(owner)
        seen.add(match[1])


def _mixed(message: int) -> UserError:
    return UserError(f"the chat template mixes messages[{message}] with another turn", OTHER_TEMPLATE)


def after_reasoning(
    chat: ChatFormat, turn: Turn, message: Mapping[str, Any], texts: Texts, found: Sequence[re.Match[str]]
) -> int:
    """Where the reply of a turn begins: after the control token that ends its reasoning, if it shows one.

    Raises:
        UserError: the reasoning ends without a control token.
    """
    given = [message.get(name) for name in REASONING]
    marks = [MARK.fullmatch(value) for value in given if isinstance(value, str)]
    reasoning = {int(mark[1]) for mark in marks if mark is not None}
    first, last = (bisect_left(found, place, key=re.Match.start) for place in (turn.start, turn.end))
    for at in reversed(range(first, last)):
        mark = found[at]
        if mark[1] is None or reasoning.isdisjoint(texts.origins([int(mark[1])])):
            continue
        following = found[at + 1] if at + 1 < len(found) else None
        end = turn.end if following is None else following.start()
        # A template that spells the end as text may still have a control token later on, such as that of a call.
        spelled = mark.string[mark.end() : end].strip()
        if following is None or spelled or chat.control(following) in {None, *chat.stops}:
            raise UserError("the chat template does not mark the end of reasoning with a control token", OTHER_TEMPLATE)
        return following.end()
    return turn.start
