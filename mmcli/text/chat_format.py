"""The structure of a tokenizer's chat template: where turns of the assistant begin and with which tokens they end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import jinja2

from mmcli.errors import UserError
from mmcli.text.marked import MARK
from mmcli.text.messages import hide_messages, hide_tools
from mmcli.text.opaque import Texts
from mmcli.text.sandbox import compile_template, render, variables_of
from mmcli.text.template import CHATML_CONTROLS
from mmcli.text.tokenizer import Tokenizer

OTHER_TEMPLATE = "use a tokenizer with another chat template, such as one of `mmcli tokenizer train`"
# The variables by which templates let a caller choose whether the model reasons: Qwen3, MiniMind, DeepSeek V3.1.
SWITCHES = ("enable_thinking", "open_thinking", "thinking")


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and its structure, found by rendering a few short conversations.

    Most templates end a turn with a token of its own. Some, such as GLM-4's, end it with the token that begins the
    next one, so that the last turn has none: `closing` and `closing_call` are then the tokens that the model is to
    write there, after a text and after a tool call.
    """

    template: jinja2.Template
    variables: dict[str, Any]  # bos_token and so on, for the template
    scanner: re.Pattern[str]  # a mark (group 1: its number) or a control token, with the blanks that it swallows
    controls: dict[str, int]  # control tokens as the scanner finds them
    switch: str | None  # the variable that says whether the model is to reason
    generation_prompt: str = ""  # what add_generation_prompt appends
    header: str = ""  # the part of it with which every turn of the assistant begins
    turn_ends: frozenset[int] = frozenset()  # tokens that end a turn of the assistant
    stops: frozenset[int] = frozenset()  # those of them that stand nowhere inside of a turn
    closing: int | None = None
    closing_call: int | None = None
    shows_reasoning: bool = False
    literals: dict[str, list[int]] = field(
        default_factory=dict
    )  # ids of the template's own text between control tokens

    @cached_property
    def shows_tools(self) -> bool:
        """A system message or none: the template writes the tools."""
        conversations = ((QUESTION,), (SYSTEM, QUESTION))
        return any(_shows(self, ("t",), *messages, tools=[TOOL]) for messages in conversations)

    @cached_property
    def shows_calls(self) -> bool:
        """The template writes calls and their results."""
        return _shows(self, ("f", "r"), QUESTION, CALL, RESULT)

    @cached_property
    def shows_system(self) -> bool:
        """The template writes a system message."""
        return _shows(self, ("s",), SYSTEM, QUESTION)

    def control(self, match: re.Match[str]) -> int | None:
        """The id of the control token that the scanner found, None if it found a mark."""
        if match[1] is not None:
            return None
        found = match[0]
        return self.controls[found] if found in self.controls else self.controls[found.strip()]

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        add_generation_prompt: bool,
        texts: Texts,
        *,
        thinking: bool | None = None,
    ) -> str:
        """The conversation with marks for texts.

        Raises:
            UserError: the template refuses the conversation, or has no switch for `thinking`.
        """
        given: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None}
        given |= {"add_generation_prompt": add_generation_prompt}
        if thinking is not None:
            if self.switch is None:
                raise UserError("the chat template has no switch for thinking", "leave out --think and --no-think")
            given[self.switch] = thinking
        return render(self.template, texts, {**self.variables, **given})


_formats: WeakKeyDictionary[Tokenizer, ChatFormat] = WeakKeyDictionary()


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a tokenizer, worked out once.

    Raises:
        UserError: there is no template, it is broken, or it does not show where the assistant's turns are.
    """
    if tokenizer not in _formats:
        _formats[tokenizer] = _work_out(tokenizer)
    return _formats[tokenizer]


# Short messages that a template is tried with.
QUESTION = {"role": "user", "content": "x"}
ANSWER = {"role": "assistant", "content": "y"}
REASONED = {**ANSWER, "reasoning_content": "z"}
CALLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}},
    {"type": "function", "function": {"name": "g", "arguments": {"c": "d"}}},
]
CALL = {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}
RESULT = {"role": "tool", "name": "f", "content": "r"}
PARAMETERS = {"type": "object", "properties": {"p": {"type": "string", "description": "q"}}, "required": ["p"]}
TOOL = {"type": "function", "function": {"name": "t", "description": "d", "parameters": PARAMETERS}}
SYSTEM = {"role": "system", "content": "s"}


class _Probe:
    """A template's output for some of these messages."""

    def __init__(self, chat: ChatFormat, *messages: dict[str, Any], tools: Any = None) -> None:
        self._chat, self._texts = chat, Texts()
        hidden = hide_messages(messages, self._texts)
        self.rendered = chat.render(hidden, hide_tools(tools, self._texts), False, self._texts)
        self._found = list(chat.scanner.finditer(self.rendered))

    def shows(self, text: str) -> bool:
        """True if one of the texts is in the output."""
        shown = {int(match[1]) for match in self._found if match[1] is not None}
        return text in {self._texts.texts[index] for index in self._texts.origins(shown)}

    def around(self, message: int) -> tuple[list[int], list[int]]:
        """Control tokens between the texts of a message, and from there to the next message's text or the end.

        Raises:
            UserError: the output has no text of the message.
        """
        owners = [None if match[1] is None else self._texts.owners[int(match[1])] for match in self._found]
        own = [at for at, owner in enumerate(owners) if owner == message]
        if not own:
            raise UserError("the chat template loses text: what the assistant says", OTHER_TEMPLATE)
        others = (at for at, owner in enumerate(owners) if at > own[-1] and owner not in (None, message))
        return self._controls(own[0], own[-1]), self._controls(own[-1], next(others, len(owners)))

    def _controls(self, first: int, last: int) -> list[int]:
        ids = (self._chat.control(match) for match in self._found[first:last])
        return [id for id in ids if id is not None]


def _shows(chat: ChatFormat, texts: Sequence[str], *messages: dict[str, Any], tools: Any = None) -> bool:
    """True if the template writes all these `texts` of a conversation, which it may refuse."""
    with suppress(UserError):
        return all(map(_Probe(chat, *messages, tools=tools).shows, texts))
    return False


def _work_out(tokenizer: Tokenizer) -> ChatFormat:
    if tokenizer.chat_template is None:
        missing = " and ".join(token for token in CHATML_CONTROLS if tokenizer.control_id(token) is None)
        what = f"the tokenizer has no chat template, and lacks {missing} for ours"
        raise UserError(what, "add chat_template to its tokenizer_config.json, or use one of `mmcli tokenizer train`")
    template, scanner = compile_template(tokenizer.chat_template), _scanner(tokenizer)
    names = variables_of(tokenizer.chat_template)
    switch = next((name for name in SWITCHES if name in names), None)
    chat = ChatFormat(template, _variables(tokenizer), scanner, tokenizer.control_tokens, switch)
    return _with_ends(_with_header(chat))


def _with_header(chat: ChatFormat) -> ChatFormat:
    """With the generation prompt, and with what turns of the assistant, whatever they hold, begin with of it."""
    prompt, start = generation_prompt(chat)
    reasoned = _Probe(chat, QUESTION, REASONED)
    header = prompt[: shared(prompt, reasoned.rendered[start:], chat.scanner)] or prompt
    for messages in ((QUESTION, ANSWER), (QUESTION, ANSWER, QUESTION), (QUESTION, CALL)):
        with suppress(UserError):  # a template may know no calls
            rendered = _Probe(chat, *messages).rendered
            header = header[: shared(header, rendered[start:], chat.scanner)] or header
    return replace(chat, generation_prompt=prompt, header=header, shows_reasoning=reasoned.shows("z"))


def generation_prompt(chat: ChatFormat, thinking: bool | None = None) -> tuple[str, int]:
    """What add_generation_prompt appends to a question, and where it begins.

    Raises:
        UserError: nothing, or the template has no switch for `thinking`.
    """
    rendered = []
    for add_generation_prompt in (False, True):
        texts = Texts()
        question = hide_messages([QUESTION], texts)
        rendered.append(chat.render(question, None, add_generation_prompt, texts, thinking=thinking))
    start = shared(rendered[1], rendered[0], chat.scanner)
    prompt = rendered[1][start:]
    if not prompt or MARK.search(prompt):
        raise UserError("the chat template appends nothing for add_generation_prompt", OTHER_TEMPLATE)
    return prompt, start


def _with_ends(chat: ChatFormat) -> ChatFormat:
    """With the tokens that end a turn."""
    inside, tail = _Probe(chat, QUESTION, REASONED).around(1)
    later: list[int] = []
    call: list[int] = []
    called: list[int] = []
    between: list[int] = []
    with suppress(UserError):
        _, later = _Probe(chat, QUESTION, ANSWER, QUESTION).around(1)
    with suppress(UserError):
        _, call = _Probe(chat, QUESTION, CALL).around(1)
        between, _ = _Probe(chat, QUESTION, {**CALL, "tool_calls": CALLS}).around(1)
    with suppress(UserError):
        _, called = _Probe(chat, QUESTION, CALL, RESULT).around(1)
    if tail:
        ends = {tail[0], *later[:1]}
        # The last, for before it may stand the end of the call itself, which stands between two calls as well.
        ends |= set() if ends.intersection(call) else set(call[-1:]).difference(between)
        return replace(chat, turn_ends=frozenset(ends), stops=frozenset(ends.difference(inside) or ends))
    if not later:
        raise UserError("the chat template ends the assistant's turn without a control token", OTHER_TEMPLATE)
    closing_call = next(iter(called[len(call) :]), None)
    ends = {later[0], *(() if closing_call is None else (closing_call,))}
    return replace(chat, turn_ends=frozenset(ends), stops=frozenset(ends), closing=later[0], closing_call=closing_call)


def shared(one: str, other: str, scanner: re.Pattern[str]) -> int:
    """How many characters of `one` `other` begins with, without a part of a control token."""
    count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return next((found.start() for found in scanner.finditer(one) if found.start() < count < found.end()), count)


def _variables(tokenizer: Tokenizer) -> dict[str, Any]:
    """The special tokens as templates name them; those that are off stay undefined, which renders as nothing."""
    named = ((name, value) for name, value in tokenizer.definition.config.items() if name.endswith("_token"))
    contents = ((name, value.get("content") if isinstance(value, dict) else value) for name, value in named)
    return {name: content for name, content in contents if isinstance(content, str)}


def _scanner(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Finds marks and control tokens; of two control tokens at one place the longer, as in the tokenizers library."""
    controls = tokenizer.control_tokens
    tokens = [token for token in tokenizer.definition.tokenizer["added_tokens"] if token["content"] in controls]
    tokens.sort(key=lambda token: len(token["content"]), reverse=True)
    alternatives = [MARK.pattern]
    for token in tokens:
        left, right = (r"\s*" if token.get(side) else "" for side in ("lstrip", "rstrip"))
        alternatives.append(left + re.escape(token["content"]) + right)
    return re.compile("|".join(alternatives))
