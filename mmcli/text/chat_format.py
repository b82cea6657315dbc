"""What a tokenizer's chat template looks like from outside: where turns of the assistant begin and end."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import jinja2

from mmcli.errors import UserError
from mmcli.text.messages import hide_messages
from mmcli.text.opaque import MARK, Texts
from mmcli.text.sandbox import compile_template, render
from mmcli.text.template import CHATML_CONTROLS
from mmcli.text.tokenizer import Tokenizer

OTHER_TEMPLATE = "use a tokenizer with another chat template, such as one of `mmcli tokenizer train`"


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and its structure, found by rendering two short conversations."""

    template: jinja2.Template
    variables: dict[str, Any]  # bos_token and so on, for the template
    scanner: re.Pattern[str]  # a mark (group 1: its number) or a control token, with the blanks that it swallows
    generation_prompt: str  # what add_generation_prompt appends
    stem: str  # the part of it with which a turn that reasons begins too
    turn_end: int  # the control token that ends a turn of the assistant
    controls: dict[str, int]  # control tokens as the scanner finds them
    literals: dict[str, list[int]] = field(
        default_factory=dict
    )  # ids of the template's own text between control tokens

    def control(self, match: re.Match[str]) -> int | None:
        """The id of the control token that the scanner found, None if it found a mark."""
        if match[1] is not None:
            return None
        found = match[0]
        return self.controls[found] if found in self.controls else self.controls[found.strip()]

    def render(self, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool, texts: Texts) -> str:
        """The conversation with marks for texts.

        Raises:
            UserError: the template refuses the conversation.
        """
        given = {"messages": messages, "tools": tools, "documents": None}
        return render(self.template, texts, {**self.variables, **given, "add_generation_prompt": add_generation_prompt})


_formats: WeakKeyDictionary[Tokenizer, ChatFormat] = WeakKeyDictionary()


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a tokenizer, worked out once.

    Raises:
        UserError: there is no template, it is broken, or it does not show where the assistant's turns are.
    """
    if tokenizer not in _formats:
        _formats[tokenizer] = _work_out(tokenizer)
    return _formats[tokenizer]


def _work_out(tokenizer: Tokenizer) -> ChatFormat:
    if tokenizer.chat_template is None:
        missing = " and ".join(token for token in CHATML_CONTROLS if tokenizer.control_id(token) is None)
        what = f"the tokenizer has no chat template, and lacks {missing} for ours"
        raise UserError(what, "add chat_template to its tokenizer_config.json, or use one of `mmcli tokenizer train`")
    template = compile_template(tokenizer.chat_template)
    scanner = _scanner(tokenizer)
    controls = tokenizer.control_tokens
    probe = ChatFormat(template, _variables(tokenizer), scanner, "", "", -1, controls)
    question = {"role": "user", "content": "x"}
    before, _ = _render([question], probe, False)
    prompted, _ = _render([question], probe, True)
    start = _shared(prompted, before, scanner)
    prompt = prompted[start:]
    if not prompt or MARK.search(prompt):
        raise UserError("the chat template appends nothing for add_generation_prompt", OTHER_TEMPLATE)
    answer = {"role": "assistant", "content": "y", "reasoning_content": "z"}
    whole, texts = _render([question, answer], probe, False)
    stem = prompt[: _shared(prompt, whole[start:], scanner)]
    turn_end = _turn_end(probe, whole, texts)
    return ChatFormat(template, probe.variables, scanner, prompt, stem, turn_end, controls)


def _render(messages: list[dict[str, str]], chat: ChatFormat, add_generation_prompt: bool) -> tuple[str, Texts]:
    texts = Texts()
    return chat.render(hide_messages(messages, texts), None, add_generation_prompt, texts), texts


def _shared(one: str, other: str, scanner: re.Pattern[str]) -> int:
    """How many characters of `one` `other` begins with, without a part of a control token."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return next((found.start() for found in scanner.finditer(one) if found.start() < shared < found.end()), shared)


def _turn_end(probe: ChatFormat, rendered: str, texts: Texts) -> int:
    """The first control token after the last text of message 1, the assistant's."""
    found = list(probe.scanner.finditer(rendered))
    answers = [at for at, match in enumerate(found) if match[1] is not None and texts.owners[int(match[1])] == 1]
    if not answers:
        raise UserError("the chat template loses text: what the assistant says", OTHER_TEMPLATE)
    for match in found[answers[-1] + 1 :]:
        id = probe.control(match)
        if id is not None:
            return id
    raise UserError("the chat template ends the assistant's turn without a control token", OTHER_TEMPLATE)


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
