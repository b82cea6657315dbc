"""Requests that nobody would write, for `serve_fuzz.py`: bodies of every kind, into some of which odd values are put.

A request is a function of (seed, number), so one that the server trips over can be sent again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from served import MODEL

Manner = Literal["whole", "slow", "drips", "leaves", "resets", "half-closes", "garbles", "odd head"]
MANNERS: dict[Manner, int] = {"whole": 60, "slow": 6, "drips": 6, "leaves": 6, "resets": 5, "half-closes": 5}
MANNERS |= {"garbles": 6, "odd head": 6}
CHANGES = {0: 60, 1: 24, 2: 10, 6: 6}  # odd values in a body: how often each number of them
WORDS = ("rain", "cloud", "hills", "你好", "世界。", "The", "2 + 2", "?", "{", '"a": [1,', "\n")
ODD_TEXTS = (
    *("", " ", "\n\n", "\x00", "\x1b[31m", "\\", '"', "'; --", "%s%n", "{{ 7 * 7 }}", "{% raw %}", "../../etc/passwd"),
    *("<|im_start|>system\n", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|endoftext|>"),
    *("\ud800", "\udfff a", "\ufeff", "\u202eabc", "é" * 50, "👩‍👩‍👧‍👦"),
    *("𠀀", "ᄀ" * 20, "\uffff", "0" * 300, "a\u0300" * 40),
)
ODD_NUMBERS = (
    *(0, -1, 1, 2, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, -0.0, 0.1, 1.5, -1e-9),
    *(1e-320, 1e-9, 1e17, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
PATTERNS = ("^[a-z]{1,8}$", "^(a|aa)+$", "^(a*)*b$", "(?=a)a", "[", "^.{0,500}$", r"^\p{L}+$", "^$", "a{2,1}", "你|好")
FORMATS = ("date", "date-time", "uuid", "email", "ipv4", "uri", "hostname", "regex", "no-such-format")


@dataclass(frozen=True)
class OddRequest:
    """A request, and how its client behaves.

    Attributes:
        changes: values of an ordinary body that were replaced.
        manner: `whole` sends and reads all; `garbles` breaks the bytes of the body, `odd head` the lines before it.
    """

    number: int
    path: str
    body: dict[str, Any]
    changes: int
    manner: Manner
    draw: random.Random  # for what the client does

    @property
    def data(self) -> bytes:
        """The body in JSON; NaN and infinity stand there as Python writes them."""
        return json.dumps(self.body).encode()


def odd_request(seed: int, number: int) -> OddRequest:
    """Request `number` of a seed."""
    draw = random.Random(f"{seed} {number}")
    path, make = draw.choice(KINDS)
    body = make(draw)
    changes = _chosen(draw, CHANGES)
    for _ in range(changes):
        body = _changed(draw, body)
    return OddRequest(number, path, body, changes, _chosen(draw, MANNERS), draw)


def _chosen(draw: random.Random, weights: dict[Any, int]) -> Any:
    return draw.choices(list(weights), list(weights.values()))[0]


def _text(draw: random.Random) -> str:
    words = draw.choices(WORDS, k=draw.randint(1, 8))
    if draw.random() < 0.3:
        words.insert(draw.randint(0, len(words)), draw.choice(ODD_TEXTS))
    return " ".join(words) * (200 if draw.random() < 0.01 else 1)


def _some(draw: random.Random, options: dict[str, Callable[[], Any]], share: float) -> dict[str, Any]:
    """About a share of the options."""
    return {name: make() for name, make in options.items() if draw.random() < share}


def _sampling(draw: random.Random) -> dict[str, Any]:
    pick = draw.choice
    return _some(
        draw,
        {
            "temperature": lambda: pick([0, 0.0, 0.3, 1, 2, None]),
            "top_p": lambda: pick([1e-300, 0.5, 1, None]),
            "top_k": lambda: pick([0, 1, 7, 10**6, None]),
            "min_p": lambda: pick([0, 0.5, 1]),
            "repetition_penalty": lambda: pick([0.01, 1, 1.3, 100]),
            "seed": lambda: pick([0, -1, 2**63, -(2**63), 2**64 - 1]),
            "user": lambda: "u" * pick([0, 5, 1024]),
            "metadata": lambda: pick([{}, {"a": "b"}, {draw.choice(ODD_TEXTS): _json(draw, 3)}]),
            "stream": lambda: pick([True, True, True, False, None]),
        },
        0.3,
    )


def _generation(draw: random.Random) -> dict[str, Any]:
    pick = draw.choice
    options = {
        "n": lambda: pick([1, 2, 4]),
        "stop": lambda: pick([["a"], "e", "rain", [], ["\n", " ", "。", "x" * 500], "é"]),
        "stream_options": lambda: pick([None, {"include_usage": True}, {"include_usage": False}]),
        "presence_penalty": lambda: pick([0, 0.0, None]),
        "logit_bias": lambda: pick([None, {}]),
    }
    return {"model": MODEL, **_sampling(draw), **_some(draw, options, 0.3)}


def _parts(draw: random.Random) -> list[dict[str, Any]]:
    return [{"type": "text", "text": _text(draw)} for _ in range(draw.randint(0, 3))]


def _messages(draw: random.Random) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.3:
        messages.append({"role": draw.choice(["system", "developer"]), "content": _text(draw)})
    for turn in range(draw.choice([1, 1, 1, 2, 3])):
        if turn:
            messages += _answered(draw)
        content: Any = _text(draw) if draw.random() < 0.8 else _parts(draw)
        named = {"name": draw.choice(["ann", ""])} if draw.random() < 0.05 else {}
        messages.append({"role": "user", "content": content, **named})
    return messages


def _answered(draw: random.Random) -> list[dict[str, Any]]:
    """The assistant's turn, with the result of its call if it has one."""
    if draw.random() < 0.6:
        reasoning = {"reasoning_content": _text(draw)} if draw.random() < 0.2 else {}
        return [{"role": "assistant", "content": _text(draw), **reasoning}]
    arguments: Any = {draw.choice(WORDS): _json(draw, 2)}
    call = {"name": "add", "arguments": json.dumps(arguments) if draw.random() < 0.7 else arguments}
    calls = [{"id": "call_1", "type": "function", "function": call}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": _text(draw)}
    return [{"role": "assistant", "content": draw.choice([None, "", "so"]), "tool_calls": calls}, result]


def _tools(draw: random.Random) -> list[dict[str, Any]]:
    tools = []
    for number in range(draw.randint(1, 3)):
        function: dict[str, Any] = {"name": f"f{number}"}
        function |= _some(
            draw,
            {
                "description": lambda: _text(draw),
                "parameters": lambda: _object(draw, 2),
                "strict": lambda: draw.choice([True, False, None]),
            },
            0.6,
        )
        tools.append(function)
    return tools


def _chat(draw: random.Random) -> dict[str, Any]:
    body = {**_generation(draw), "messages": _messages(draw)}
    body[draw.choice(["max_tokens", "max_completion_tokens"])] = draw.randint(1, 24)
    if draw.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": draw.choice([0, 1, 5, 20])}
    kind = draw.random()
    if kind < 0.25:
        body |= {"tools": [{"type": "function", "function": each} for each in _tools(draw)]}
        named = {"type": "function", "function": {"name": "f0"}}
        body |= _some(draw, {"tool_choice": lambda: draw.choice(["none", "auto", "required", named])}, 0.7)
        body |= _some(draw, {"parallel_tool_calls": lambda: draw.choice([True, False])}, 0.3)
    elif kind < 0.5:
        schema = _object(draw, 3) if draw.random() < 0.7 else _schema(draw, 3)
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        body["response_format"] = draw.choice([form, form, form, {"type": "json_object"}, {"type": "text"}])
    return body


def _completion(draw: random.Random) -> dict[str, Any]:
    prompts = [
        _text(draw),
        [_text(draw), _text(draw)],
        [draw.randrange(400) for _ in range(draw.randint(1, 30))],
        [[0], [399, 1]],
    ]
    body = {**_generation(draw), "prompt": draw.choice(prompts), "max_tokens": draw.randint(1, 24)}
    odd = {"logprobs": lambda: draw.choice([0, 1, 5]), "echo": lambda: draw.choice([True, False])}
    return {**body, **_some(draw, odd, 0.2)}


def _response(draw: random.Random) -> dict[str, Any]:
    body = {"model": MODEL, **_sampling(draw), "max_output_tokens": draw.randint(1, 24)}
    body["input"] = _text(draw) if draw.random() < 0.5 else _items(draw)
    kind = draw.random()
    if kind < 0.25:
        body["tools"] = [{"type": "function", **each} for each in _tools(draw)]
        named = {"type": "function", "name": "f0"}
        body |= _some(draw, {"tool_choice": lambda: draw.choice(["none", "auto", "required", named])}, 0.7)
    elif kind < 0.5:
        body["text"] = {"format": {"type": "json_schema", "name": "n", "schema": _object(draw, 2)}}
    options = {"instructions": lambda: _text(draw), "top_logprobs": lambda: draw.choice([0, 3, 20])}
    return {**body, **_some(draw, options, 0.3)}


def _items(draw: random.Random) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [{"role": "user", "content": _text(draw)}]
    if draw.random() < 0.5:
        part = {"type": "output_text", "text": _text(draw), "annotations": []}
        reasoning = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": _text(draw)}]}
        call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": json.dumps(_json(draw, 1))}
        items += draw.sample([reasoning, {"type": "message", "role": "assistant", "content": [part]}, call], k=2)
        items.append({"type": "function_call_output", "call_id": "c", "output": _text(draw)})
        items.append({"role": "user", "content": [{"type": "input_text", "text": _text(draw)}]})
    return items


KINDS: list[tuple[str, Callable[[random.Random], dict[str, Any]]]] = [
    *[("/v1/chat/completions", _chat)] * 3,
    ("/v1/completions", _completion),
    ("/v1/responses", _response),
]


def _json(draw: random.Random, depth: int) -> Any:
    """A JSON value."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.randint(-9, 99),
        lambda: _text(draw),
    ]
    if depth:
        kinds.append(lambda: [_json(draw, depth - 1) for _ in range(draw.randint(0, 3))])
        kinds.append(lambda: {_text(draw): _json(draw, depth - 1) for _ in range(draw.randint(0, 3))})
    return draw.choice(kinds)()


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    """The JSON Schema of an object."""
    names = draw.sample(["a", "b", "名", "with space", "", 'q"uote', "\n"], k=draw.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _schema(draw, depth - 1) for name in names}}
    if draw.random() < 0.7:
        schema |= {"required": names, "additionalProperties": draw.choice([False, False, True, {"type": "null"}])}
    return schema


def _schema(draw: random.Random, depth: int) -> Any:
    """A JSON Schema, mostly of the ordinary kind."""
    plain: list[Callable[[], Any]] = [
        lambda: {"type": draw.choice(["boolean", "null", "integer", "number", "string"])},
        lambda: {"type": "integer", "minimum": draw.choice([-5, 0]), "maximum": draw.choice([0, 9, 10**12])},
        lambda: {"type": "number", **_some(draw, {"multipleOf": lambda: draw.choice([0.5, 3, 1e-9])}, 0.4)},
        lambda: {"type": "string", "maxLength": draw.choice([0, 3, 200])},
        lambda: {"type": "string", "pattern": draw.choice(PATTERNS)},
        lambda: {"type": "string", "format": draw.choice(FORMATS)},
        lambda: {"enum": [_json(draw, 1) for _ in range(draw.randint(1, 5))]},
        lambda: {"const": _json(draw, 2)},
        lambda: draw.choice([{}, True, False, {"$ref": "#"}, {"type": ["string", "null"]}]),
    ]
    if depth <= 0:
        return draw.choice(plain)()
    several = draw.choice(["anyOf", "anyOf", "oneOf", "allOf"])
    nested: list[Callable[[], Any]] = [
        lambda: _object(draw, depth),
        lambda: {"type": "array", "items": _schema(draw, depth - 1), "maxItems": draw.choice([0, 2, 50])},
        lambda: {several: [_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]},
    ]
    return draw.choice([*plain, *nested, *nested])()


def _place(draw: random.Random, body: dict[str, Any]) -> tuple[Any, Any]:
    """(container, key) of a value inside, at any depth."""
    container: Any = body
    while True:
        key = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
        inner = container[key]
        if not inner or not isinstance(inner, list | dict) or draw.random() < 0.3:
            return container, key
        container = inner


def _changed(draw: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """The body with a value replaced, left out, or put in."""
    body = json.loads(json.dumps(body))  # no part of it is another's part too
    if not body:
        return body
    container, key = _place(draw, body)
    how = draw.random()
    if how < 0.7:
        container[key] = _odd(draw)
    elif how < 0.85:
        del container[key]
    elif isinstance(container, dict):
        container[draw.choice([*ODD_TEXTS, "type", "$ref", "nullable", "not", "minLength", "name"])] = _odd(draw)
    else:
        container.insert(key, draw.choice([_odd(draw), container[key]]))
    return body


def _odd(draw: random.Random) -> Any:
    """Anything."""
    kinds: list[Callable[[], Any]] = [
        *[lambda: draw.choice(ODD_NUMBERS)] * 3,
        *[lambda: draw.choice(ODD_TEXTS)] * 3,
        lambda: draw.choice([None, True, False, [], {}, [[]], [None], {"": {}}]),
        lambda: _text(draw) * 30,
        lambda: _json(draw, 3),
        lambda: _schema(draw, 3),
        lambda: _nested(draw, draw.choice([5, 60, 250, 900])),
        lambda: [draw.choice([0, "a", {}])] * draw.choice([17, 130, 5000]),
    ]
    return draw.choice(kinds)()


def _nested(draw: random.Random, depth: int) -> Any:
    """Lists, objects or schemas inside one another."""
    value: Any = draw.choice([None, {}, "a"])
    wrap = draw.choice(["list", "a", "items", "properties", "anyOf"])
    for _ in range(depth):
        if wrap == "list":
            value = [value]
        elif wrap == "properties":
            value = {"type": "object", "properties": {"a": value}}
        else:
            value = {wrap: [value] if wrap == "anyOf" else value}
    return value
