"""Tools that a model may call: Python functions of a file, or schemas alone, whose calls a person answers."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmcli.errors import UserError
from mmcli.generate.tool_calls import ToolCall

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
ARGUMENT = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
WRITE_JSON = 'give a list like [{"name": ..., "description": ..., "parameters": {"type": "object", ...}}]'


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: its JSON schema, and the function itself unless a person answers."""

    name: str
    schema: dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}
    function: Callable[..., Any] | None = None

    def run(self, call: ToolCall) -> str:
        """What the function returns, as text (JSON where it is none); its errors are text too, for the model to read.

        What the function prints goes to stderr.
        """
        assert self.function is not None
        try:
            bound = inspect.signature(self.function).bind(**call.arguments)
            with contextlib.redirect_stdout(sys.stderr):
                result = self.function(*bound.args, **bound.kwargs)
            return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"


def load_tools(path: Path) -> list[Tool]:
    """The tools of a file: the public functions that a .py file defines, or the schemas of a .json file.

    A function needs type hints; its docstring describes it, and with an `Args:` section its parameters.

    Raises:
        UserError: no such file, one that cannot be read or run, or a function that gives no schema.
    """
    path = path.expanduser()
    if path.suffix not in (".py", ".json"):
        raise UserError(f"{path} is neither a .py nor a .json file", "give functions as .py, or schemas as .json")
    if not path.is_file():
        raise UserError(f"there is no file {path}", "give a .py file of functions, or a .json file of schemas")
    tools = _from_module(path) if path.suffix == ".py" else _from_json(path)
    names = [tool.name for tool in tools]
    if not tools:
        raise UserError(f"{path} has no tool", "define a function with type hints and a docstring")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a tool twice: {', '.join(names)}", "give each its own name")
    return tools


def _from_json(path: Path) -> list[Tool]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}", WRITE_JSON) from None
    found = found.get("tools") if isinstance(found, dict) and "tools" in found else found
    if not isinstance(found, list):
        raise UserError(f"{path} is no list of tools", WRITE_JSON)
    tools = []
    for number, each in enumerate(found):
        function = each.get("function", each) if isinstance(each, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"{path}: tool {number} has no name", WRITE_JSON)
        tools.append(Tool(function["name"], {"type": "function", "function": function}))
    return tools


def _from_module(path: Path) -> list[Tool]:
    spec = importlib.util.spec_from_file_location(f"mmcli_tools_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and hints look their module up
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}", "fix the file") from None
    own = {name: each for name, each in vars(module).items() if inspect.isfunction(each)}
    return [
        Tool(name, {"type": "function", "function": function_schema(each, str(path))}, each)
        for name, each in own.items()
        if not name.startswith("_") and each.__module__ == spec.name
    ]


def function_schema(function: Callable[..., Any], place: str) -> dict[str, Any]:
    """`{"name", "description", "parameters"}` of a function, from its type hints and its docstring.

    Raises:
        UserError: no docstring, or a parameter whose hint is missing or no type of JSON.
    """
    where = f"{place}: {function.__name__}"
    document = inspect.getdoc(function)
    if not document:
        raise UserError(f"{where} has no docstring", "say in it what the function does: the model reads that")
    described, properties, required = _described(document), {}, []
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # a name in a hint that is not there
        raise UserError(f"{where} has a hint that cannot be read: {error}", "fix the hint") from None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f'{where} has the parameter "{parameter}"', "name every parameter")
        if name not in hints:
            raise UserError(f'{where}: parameter "{name}" has no type hint', f"write it like: {name}: str")
        properties[name] = _type_schema(hints[name], f'{where}: parameter "{name}"')
        if name in described:
            properties[name]["description"] = described[name]
        if parameter.default is parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required}
    description = " ".join(re.split(r"\n\s*\n|\n\s*Args:", document)[0].split())
    return {"name": function.__name__, "description": description, "parameters": parameters}


def _described(document: str) -> dict[str, str]:
    """The descriptions of parameters in the `Args:` section of a docstring."""
    found: dict[str, str] = {}
    section = re.search(r"^\s*Args:\s*\n(.*?)(?=^\S|\Z)", document, re.DOTALL | re.MULTILINE)
    lines = section[1].splitlines() if section else []
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    last = None
    for line in lines:
        if line[: indent + 1].strip() and (match := ARGUMENT.match(line.strip())):
            last, found[match[1]] = match[1], match[2]
        elif last and line.strip():
            found[last] = f"{found[last]} {line.strip()}"
    return found


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type hint."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(each, where) for each in inner]}
    if hint is list or origin is list:
        return {"type": "array", **({"items": _type_schema(inner[0], where)} if inner else {})}
    if hint is dict or (origin is dict and inner[0] is str):
        return {"type": "object", **({"additionalProperties": _type_schema(inner[1], where)} if inner else {})}
    name = getattr(hint, "__name__", None) or str(hint)
    raise UserError(f"{where} is of type {name}", "use str, int, float, bool, list, dict[str, ...], Literal or a union")
