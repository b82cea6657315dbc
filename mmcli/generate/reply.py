"""From the ids of a reply to what a person sees and to the message that the history keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcli.text.prompt import CALL_MARK, END_CALL_MARK
from mmcli.text.tokenizer import TextStream, Tokenizer

Message = dict[str, Any]
THINK, END_THINK = "<think>", "</think>"
# Control tokens that are part of what a model says; all others are left out of the text, as in `Tokenizer.decode`.
SHOWN = (THINK, END_THINK, CALL_MARK, END_CALL_MARK)

OPENING = 4  # the last ids of a prompt, among which a template's own <think> is


class ReplyStream:
    """Ids in one by one, whole characters out, with the marks of reasoning and tool calls spelled out.

    Attributes:
        reasoning: the model reasons after the ids so far.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        """`prompt_ids` tell whether the prompt itself opened the reasoning, as some templates do."""
        self._stream = TextStream(tokenizer)
        self._marks = {tokenizer.control_id(mark): mark for mark in SHOWN}
        marks = (self._marks[id] for id in reversed(prompt_ids[-OPENING:]) if id in self._marks)
        self.reasoning = next(marks, None) == THINK

    def push(self, id: int) -> str:
        """The text that `id` completes; "" while a character lacks bytes."""
        if id in self._marks:
            self.reasoning = self._marks[id] == THINK or (self.reasoning and self._marks[id] != END_THINK)
            return self._stream.flush() + self._marks[id]
        return self._stream.push(id)

    def flush(self) -> str:
        """The text of an unfinished character at the end."""
        return self._stream.flush()


def reply_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The whole text that a `ReplyStream` gives for `ids`."""
    stream = ReplyStream(tokenizer)
    return "".join(stream.push(id) for id in ids) + stream.flush()


def read_reply(tokenizer: Tokenizer, ids: Sequence[int]) -> Message:
    """The assistant message of a reply's ids (without the stop id): `content`, and `reasoning_content` if it thought.

    Marks count only as control ids: a text that spells `<think>` stays text. Line breaks around the reasoning, which
    the chat template writes itself, are taken off.
    """
    think, end_think = tokenizer.control_id(THINK), tokenizer.control_id(END_THINK)
    ids = list(ids)
    opened = think is not None and ids[:1] == [think]
    # Some templates open the reasoning in the prompt, so the reply only closes it.
    end = ids.index(end_think) if end_think is not None and end_think in ids else len(ids) if opened else -1
    message: Message = {"role": "assistant", "content": reply_text(tokenizer, ids[end + 1 :])}
    if end >= 0:
        message["content"] = message["content"].lstrip("\n")
        if reasoning := reply_text(tokenizer, ids[int(opened) : end]).strip("\n"):
            message["reasoning_content"] = reasoning
    return message
