"""From the ids of a reply, one by one, to what a client is sent: content, reasoning, tool calls, log probabilities."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mmcli.generate.reply import END_THINK, THINK
from mmcli.generate.tool_calls import CallMarks
from mmcli.serve.stops import StopStrings
from mmcli.text.prompt import CALL_MARK, END_CALL_MARK, knows_tools
from mmcli.text.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class TokenLogprob:
    """A drawn id and its log probability under the model, before temperature and penalties; `top`: the likeliest."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wrote; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """A piece of a reply."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Reader(Protocol):
    """The pieces of one reply.

    Attributes:
        called: it has a tool call.
        reasoning_tokens: ids of its reasoning so far.
    """

    called: bool
    reasoning_tokens: int

    @property
    def ended(self) -> bool:
        """The reply is over although the model would go on: a stop string came, or the only call that was wanted."""

    def push(self, id: int) -> Delta:
        """What `id` completes."""

    def finish(self) -> Delta:
        """What was held back, at the end."""


class TextReader:
    """The reader of a text that is continued: nothing but content, control tokens left out."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, echo: str = "") -> None:
        """`echo` goes before what the model writes."""
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(stops)
        self._echo = echo
        self.called = False
        self.reasoning_tokens = 0

    @property
    def ended(self) -> bool:
        return self._stops.found

    def push(self, id: int) -> Delta:
        return self._delta(self._stops.push(self._stream.push(id)))

    def finish(self) -> Delta:
        return self._delta(self._stops.push(self._stream.flush()) + self._stops.flush())

    def _delta(self, text: str) -> Delta:
        echo, self._echo = self._echo, ""
        return Delta(content=echo + text)


class ChatReader:
    """The reader of an assistant's turn.

    Reasoning stands between `<think>` and `</think>`, a tool call between `<tool_call>` and `</tool_call>`. Marks count
    only as control ids, as in `read_reply`; those of a call also as text where the tokenizer has no such control token
    or the chat template knows no tools. Stop strings are looked for in the content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        tools: bool = False,
        parallel: bool = True,
        prompt_ids: Sequence[int] = (),
        begun: bool = False,
    ) -> None:
        """A reader of what follows `prompt_ids`, which may have opened the reasoning.

        Args:
            tools: calls are wanted; without, their marks are content.
            parallel: more than one call is wanted.
            begun: the prompt begins a call.
        """
        self.called = False
        self.reasoning_tokens = 0
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(stops)
        self._tools = tools
        self._parallel = parallel
        marks = {tokenizer.control_id(mark): mark for mark in (THINK, END_THINK, CALL_MARK, END_CALL_MARK)}
        self._marks = {id: mark for id, mark in marks.items() if id is not None}
        opened = [self._marks[id] for id in prompt_ids if self._marks.get(id) in (THINK, END_THINK)]
        self._in_reasoning = opened[-1:] == [THINK]
        self._is_first = True
        self._reasoned = False  # some of the reasoning was shown
        self._after_reasoning = False  # line breaks between reasoning and content are the template's
        self._breaks = ""  # line breaks at the end of the reasoning so far, which may be the template's too
        self._call: str | None = None  # the text of a call that has begun
        self._begun_by_prompt = begun
        if begun:
            self._call = ""
        self._call_ended = False
        spells = CALL_MARK not in self._marks.values() or not knows_tools(tokenizer)
        self._spelled = CallMarks() if tools and not begun and spells else None

    @property
    def ended(self) -> bool:
        return self._stops.found or (self._call_ended and not self._parallel)

    def push(self, id: int) -> Delta:
        mark, is_first, self._is_first = self._marks.get(id), self._is_first, False
        self.reasoning_tokens += self._in_reasoning
        if mark is None:
            return self._spelled_text(self._stream.push(id))
        rest = self._rest()
        if mark == THINK and is_first:
            self._in_reasoning = True
            self.reasoning_tokens += 1
            return rest
        if mark == END_THINK and self._in_reasoning:
            self._in_reasoning, self._after_reasoning, self._breaks = False, True, ""
            return rest
        return _sum(rest, self._text(mark) if mark in (THINK, END_THINK) else self._mark_of_call(mark))

    def _mark_of_call(self, mark: str) -> Delta:
        if self._tools and not self._in_reasoning:
            if mark == CALL_MARK and self._call is None:
                self._call = ""
                return Delta(content=self._stops.flush())
            if mark == END_CALL_MARK and self._call is not None:
                return self._close_call()
        return self._text(mark)

    def _spelled_text(self, text: str) -> Delta:
        if self._spelled is None:
            return self._text(text)
        found = Delta()
        for piece in self._spelled.push(text):
            found = _sum(found, self._mark_of_call(piece) if piece in (CALL_MARK, END_CALL_MARK) else self._text(piece))
        return found

    def _rest(self) -> Delta:
        """What was held back of the text so far."""
        rest = self._spelled_text(self._stream.flush())
        return rest if self._spelled is None else _sum(rest, self._text(self._spelled.flush()))

    def finish(self) -> Delta:
        rest = self._rest()
        self._breaks = ""
        if self._call is None:
            return _sum(rest, Delta(content=self._stops.flush()))
        if self._begun_by_prompt:  # it needs no mark at its end, for nothing else can follow
            return self._close_call()
        text, self._call = CALL_MARK + self._call, None  # a call that was cut off is no call
        return Delta(content=self._stops.push(text) + self._stops.flush())

    def _text(self, text: str) -> Delta:
        if self._call is not None:
            self._call += text
            return Delta()
        if self._in_reasoning:
            text = self._breaks + text
            shown = text.rstrip("\n")
            self._breaks = text[len(shown) :]
            if not shown:
                return Delta()
            if not self._reasoned:
                self._reasoned, shown = True, shown.lstrip("\n")
            return Delta(reasoning=shown)
        if self._after_reasoning:
            text = text.lstrip("\n")
            self._after_reasoning = not text
        return Delta(content=self._stops.push(text))

    def _close_call(self) -> Delta:
        assert self._call is not None
        text, self._call = self._call, None
        call = read_call(text)
        if call is None:  # not what was asked for: the client sees what the model wrote
            return Delta(content=self._stops.push(CALL_MARK + text + END_CALL_MARK))
        self.called = self._call_ended = True
        self._after_reasoning = True  # so are those between two calls
        return Delta(calls=(call,))


def read_call(text: str) -> ToolCall | None:
    """The call in the text between the marks, `{"name": ..., "arguments": {...}}`; None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(f"call_{secrets.token_hex(12)}", value["name"], json.dumps(arguments, ensure_ascii=False))


def token_logprob(id: int, logits_V: np.ndarray, top: int) -> TokenLogprob:
    """The log probability of `id` and the `top` likeliest ids, the likeliest first."""
    scores_V = logits_V.astype(np.float64)
    scores_V -= scores_V.max()
    scores_V -= np.log(np.exp(scores_V).sum())
    count = min(top, len(scores_V))
    best = np.argpartition(-scores_V, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    best = best[np.argsort(-scores_V[best], kind="stable")]
    return TokenLogprob(id, float(scores_V[id]), tuple((int(each), float(scores_V[each])) for each in best))


def _sum(one: Delta, other: Delta) -> Delta:
    return Delta(one.content + other.content, one.reasoning + other.reasoning, one.calls + other.calls)
