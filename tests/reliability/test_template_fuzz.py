"""Chat templates made at random do to texts what templates do: what is taken is what jinja writes, byte for byte."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable

import pytest

from mmcli.errors import UserError
from mmcli.text.chat import encode_chat
from mmcli.text.messages import hide_messages
from mmcli.text.opaque import Plain
from mmcli.text.sandbox import compile_template, render
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

CONVERSATIONS = 4  # for each template
TEXTS = [
    *("Hello", "Hello\n", " a ", "a\nb", "<think>\nr\n</think>\n\na", "x</think>y", "aXaXa", "", "<|im_end|>", "\t"),
    *("Ab c", "a b  c", "12", "à É\u2028z", "\ue0000\ue001", "{{ x }}", "'q\"", "ß", "你好"),
]
LITERALS = ["'a'", "' '", "'\\n'", "'<think>'", "'</think>'", "'X'", "'Hello'", "'b'", "''"]
# Expressions of {e}, other expressions, {l}, literals, and {n}, small numbers.
SHAPES = """
({e} | trim)|({e} + {l})|({l} + {e})|({e} ~ {e})|({e} | replace({l}, {l}))|{e}.replace({l}, {e})|{e}.strip({l})
{e}.split({l})[{n}]|({e}.split() | join(' '))|{e}.rsplit({l}, 1)[-1]|({e})[{n}:]|({e})[:{n}]|({e})[{n}]|({e})[::-1]
({e} if {l} in {e} else {e})|({e} if {e} in {l} else {e})|({e} if {e}.startswith({l}) else {e})|({e} if {e} else {l})
({e} if {e}.endswith({l}) else {e})|({e} if {e} == {l} else {e})|({e} if {e} < {l} else {e})|({e} | upper)|({e} | lower)
({e} | title)|({e} | capitalize)|({e} | length)|({e} | list | join({l}))|({e} | first)|({e} | last)|({e} | tojson)
({e} | default({l}))|({e} | string)|({e} | reverse | join)|({e} | int)|('%s' % {e})|('%5s' % {e})|'{}'.format({e})
({e} in {l})|({e} | indent)|{e}.partition({l})[{n}]|({e}.splitlines() | join('-'))|show({e})|{e}.find({l})|({e} * 2)
([{e}, {e}] | unique | sort | join(','))|{e}.removeprefix({l})|{e}.count({l})|({e} | wordcount)|{e}.isdigit()
{e}.replace({l}, {e} | length)|{e}.rpartition({e})[{n}]
"""
SHAPE = [shape for line in SHAPES.strip().splitlines() for shape in line.replace(" | ", "\0").split("|")]


def expression(pick: random.Random, depth: int = 0) -> str:
    """Something that a template might write of a message."""
    if depth > 2 or pick.random() < 0.25:
        return pick.choice(["m.content", "m['content']", "m.content", "c", "m.role"])
    parts: dict[str, Callable[[], str]] = {
        "{e}": lambda: expression(pick, depth + 1),
        "{l}": lambda: pick.choice(LITERALS),
        "{n}": lambda: pick.choice("0123"),
    }
    return re.sub(r"\{[eln]\}", lambda found: parts[found[0]](), pick.choice(SHAPE).replace("\0", " | "))


def template(pick: random.Random) -> str:
    show = "{% macro show(text) %}{{ text }}{% endmacro %}"
    turn = "<|im_start|>{{ m.role }}\n{% set c = m.content | trim %}{{ " + expression(pick) + " }}REST<|im_end|>"
    turn = turn.replace("REST", pick.choice(["", "{{ c }}", "{{ m.content }}"]))
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return show + "{% for m in messages %}" + turn + "{% endfor %}" + prompt


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_what_is_taken_is_what_jinja_writes(count: int) -> None:
    made = train_tokenizer(["Hello ab, this is a text to think of: 你好"] * 3, vocab_size=320)
    taken = 0
    for seed in range(count):
        pick = random.Random(seed)
        source = template(pick)
        tokenizer = Tokenizer(dataclasses.replace(made.definition, chat_template=source))
        for _ in range(CONVERSATIONS):
            said = [pick.choice(TEXTS) + pick.choice(TEXTS) for _ in range(2)]
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
            try:
                encoded = encode_chat(tokenizer, messages)
            except UserError:
                continue
            taken += 1
            plain = Plain()
            given = {"messages": hide_messages(messages, plain), "tools": None, "add_generation_prompt": False}
            assert tokenizer.decode(encoded.ids, keep_special=True) == render(compile_template(source), plain, given)
            assert (encoded.ids.count(1), encoded.ids.count(2)) == (2, 2), (source, said)  # no text is a control token
    assert taken > count
