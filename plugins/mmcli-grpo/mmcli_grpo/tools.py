"""Tools that a reply may call: found in its text, run, and answered. No torch here.

Built in is `calculator`, the tool of the built-in corpus. What a call does wrong is an answer too: the model reads it.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.api import UserError
from mmcli_grpo.python_file import load_python_function, place_of

CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
MOST_DIGITS = 30
MOST_CHARACTERS = 200
_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
Tool = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A call that a model wrote: the name of a tool, and what it is given."""

    name: str
    arguments: Mapping[str, Any]


def find_calls(text: str) -> list[Call]:
    """The calls in a turn, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; broken ones are left out."""
    calls = []
    for found in CALL.findall(text):
        try:
            value = json.loads(found)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            arguments = value.get("arguments", {})
            if isinstance(arguments, dict):
                calls.append(Call(value["name"], arguments))
    return calls


def calculator(expression: str) -> str:
    """The value of an expression of numbers, + - * / // % and brackets.

    Raises:
        ValueError: it is something else, too long, or has no value.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ValueError("the expression is too long")
    try:
        value = _value(ast.parse(expression.replace("×", "*").replace("÷", "/").strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError, OverflowError):
        raise ValueError("not an expression") from None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _bounded(_OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError("not an expression of numbers")


def _bounded(value: Any) -> int | float:
    if abs(value) >= 10**MOST_DIGITS:
        raise ValueError("the number is too large")
    number: int | float = value
    return number


BUILT_IN: Mapping[str, Tool] = {"calculator": calculator}


def load_tools(arguments: Sequence[str]) -> dict[str, Tool]:
    """The built-in tools and those of `--tool FILE.py:FUNCTION`, by the name of their function.

    Raises:
        UserError: no such file or function, or the file cannot be run.
    """
    tools = dict(BUILT_IN)
    for argument in arguments:
        name, function = load_python_function(argument, "tool")
        tools[name] = function
    return tools


def answer(call: Call, tools: Mapping[str, Tool]) -> str:
    """What a tool says to a call; `error: ...` where it cannot.

    Raises:
        UserError: a tool of the person's own raises it.
    """
    if call.name not in tools:
        return f"error: there is no tool {call.name}"
    try:
        return str(tools[call.name](**call.arguments))
    except (UserError, KeyboardInterrupt):
        raise
    except ValueError as error:
        return f"error: {error}"
    except Exception as error:  # what a model passes to a tool is not to end a training
        return f"error: {place_of(error).partition(' (')[0]}"
