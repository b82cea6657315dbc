"""A chat template as the fixed text around the messages of a conversation, which needs no Jinja to be written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.errors import UserError
from mmcli.text.chat import encode_chat
from mmcli.text.chat_format import ChatFormat, chat_format
from mmcli.text.messages import hide_messages
from mmcli.text.opaque import Plain
from mmcli.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
SYSTEM = {"role": "system", "content": "qsystemq"}
ASK, SAY, ASK_MORE = (
    {"role": role, "content": f"q{name}q"} for role, name in (("user", "ask"), ("assistant", "say"), ("user", "more"))
)
REASONED = {**SAY, "reasoning_content": "qreasonq"}


@dataclass(frozen=True)
class Turns:
    """The text of a chat template around messages: [system], user, assistant, user, ..., user, then the prompt."""

    opening: str  # before the first message where there is no system message
    system: tuple[str, str] | None  # before and after the system message; None: the template has none
    reply: str  # between a user's message and the assistant's
    turn: str  # between an assistant's message and the user's
    prompt: str  # after the last message
    reasoning: tuple[str, str] | None  # before and after the reasoning of an earlier reply; None: it is left out


def find_turns(tokenizer: Tokenizer) -> Turns:
    """The turns of the tokenizer's chat template, which give the same ids as the template itself.

    Raises:
        UserError: no usable template, or one that writes more than fixed text around messages.
    """
    chat = chat_format(tokenizer)
    opening, reply, turn, prompt = _around(_render(chat, [ASK, SAY, ASK_MORE]), [ASK, SAY, ASK_MORE])
    try:
        before, after, _ = _around(_render(chat, [SYSTEM, ASK]), [SYSTEM, ASK])
        system: tuple[str, str] | None = (before, after)
    except UserError:
        system = None
    reasoned = _render(chat, [ASK, REASONED, ASK_MORE])
    thought = REASONED["reasoning_content"]
    reasoning = None
    if thought in reasoned:
        start, end = (_between(reasoned, *pair) for pair in ((ASK["content"], thought), (thought, SAY["content"])))
        if not start.startswith(reply):
            raise _refusal("begins a reply with reasoning otherwise than one without")
        reasoning = (start[len(reply) :], end)
    turns = Turns(opening, system, reply, turn, prompt, reasoning)
    for messages in _examples(turns):
        if turn_ids(tokenizer, turns, messages) != encode_chat(tokenizer, messages, add_generation_prompt=True).ids:
            raise _refusal("changes messages, or what stands around them, with the conversation")
    return turns


def turn_ids(tokenizer: Tokenizer, turns: Turns, messages: Messages) -> list[int]:
    """The ids of a prompt, as the browser's engine makes them (`promptIds` in engine/chat.js)."""
    controls = sorted(tokenizer.control_tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, controls))) if controls else re.compile(r"(?!)")
    ids: list[int] = []
    pending: list[str] = []

    def flush() -> None:
        ids.extend(tokenizer.encode_text("".join(pending)))
        pending.clear()

    def literal(text: str) -> None:
        end = 0
        for match in pattern.finditer(text):
            pending.append(text[end : match.start()])
            flush()
            ids.append(tokenizer.control_tokens[match[0]])
            end = match.end()
        pending.append(text[end:])

    rest = messages
    if messages[0]["role"] == "system":
        assert turns.system is not None
        literal(turns.system[0])
        pending.append(messages[0]["content"])
        literal(turns.system[1])
        rest = messages[1:]
    else:
        literal(turns.opening)
    for message in rest:
        if message["role"] == "assistant":
            literal(turns.reply)
            flush()
            if turns.reasoning is not None and message.get("reasoning_content"):
                literal(turns.reasoning[0])
                pending.append(message["reasoning_content"])
                literal(turns.reasoning[1])
            pending.append(message["content"])
            literal(turns.turn)
        else:
            pending.append(message["content"])
    literal(turns.prompt)
    flush()
    return ids


def _examples(turns: Turns) -> list[Messages]:
    """Conversations by which turns are compared with their template: long and short, spaces, control tokens as text."""
    ask = {"role": "user", "content": "  What is 云? <|im_end|></s> 12345\n"}
    say = {"role": "assistant", "content": "\nWater.\n\n```\na = 1\n```  "}
    thought = {**say, "reasoning_content": "Two\n\nlines"}
    some: list[Messages] = [[ask], [ask, say, ASK], [ASK, SAY, ask, say, ask, SAY, ASK], [ask, thought, ask, say, ASK]]
    if turns.system is None:
        return some
    system = {"role": "system", "content": " Be brief. "}
    return [*some, *([system, *messages] for messages in some)]


def _render(chat: ChatFormat, messages: Messages) -> str:
    texts = Plain()
    return chat.render(hide_messages(messages, texts), None, True, texts)


def _around(rendered: str, messages: Messages) -> list[str]:
    """What stands before, between and after the contents of messages."""
    pieces, start = [], 0
    for message in messages:
        end = rendered.find(message["content"], start)
        if end < 0:
            raise _refusal(f"leaves the {message['role']}'s message out")
        pieces.append(rendered[start:end])
        start = end + len(message["content"])
    return [*pieces, rendered[start:]]


def _between(text: str, first: str, last: str) -> str:
    start = text.find(first) + len(first)
    end = text.find(last, start)
    if end < 0:
        raise _refusal("writes the reasoning elsewhere than before the reply")
    return text[start:end]


def _refusal(what: str) -> UserError:
    fix = "serve the model instead (mmcli serve), or train it with a tokenizer of `mmcli tokenizer train`"
    return UserError(f"the chat template {what}, which the browser's engine cannot follow", fix)
