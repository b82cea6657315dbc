"""Tools of a file, and the calls of a reply: read, run, and their errors told."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.generate.tool_calls import ToolCall, calls_of, read_calls, with_calls
from mmcli.generate.tools import load_tools

SOURCE = '''
    """Two tools."""
    from __future__ import annotations
    from os.path import join
    from typing import Literal

    def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", near: list[str] | None = None) -> dict:
        """The weather of a city,
        day by day.

        Args:
            city: its name, in any
                language
            days (int): how many

        Returns:
            degrees: a number
        """
        print("looking it up")
        return {"city": city, "degrees": [20] * days}

    def fail(x: float) -> str:
        """Fails."""
        raise ValueError(f"bad {x}")

    def _hidden(): ...
'''


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return folder / name


def test_functions_become_schemas(tmp_path: Path) -> None:
    weather, fail = load_tools(write(tmp_path, "tools.py", SOURCE))
    assert weather.schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city, day by day.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its name, in any language"},
                    "days": {"type": "integer", "description": "how many"},
                    "unit": {"enum": ["C", "F"]},
                    "near": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
                },
                "required": ["city"],
            },
        },
    }
    assert fail.schema["function"]["parameters"]["properties"] == {"x": {"type": "number"}}


def test_a_tool_runs_and_its_errors_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weather, fail = load_tools(write(tmp_path, "tools.py", SOURCE))
    result = weather.run(ToolCall("weather", {"city": "北京", "days": 2}))
    assert result == '{"city": "北京", "degrees": [20, 20]}'
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "looking it up\n")  # stdout carries the reply alone
    assert fail.run(ToolCall("fail", {"x": 1})) == "error: ValueError: bad 1"
    assert fail.run(ToolCall("fail", {"y": 1})).startswith("error: TypeError: missing a required argument: 'x'")


def test_schemas_of_a_json_file_in_three_forms(tmp_path: Path) -> None:
    flat = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    nested = {"type": "function", "function": flat}
    for form in ([flat], [nested], {"tools": [nested]}):
        (tool,) = load_tools(write(tmp_path, "tools.json", json.dumps(form)))
        assert (tool.name, tool.schema, tool.function) == ("add", nested, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "neither a .py nor a .json file"),
        ("a.py", "def f(:", "cannot be run: SyntaxError"),
        ("a.py", "1 / 0", "cannot be run: ZeroDivisionError"),
        ("a.py", "raise SystemExit(3)", "cannot be run: SystemExit"),
        ("a.py", "x = 1", "has no tool"),
        ("a.py", "def f(x: int): ...", "f has no docstring"),
        ("a.py", "def f(x):\n    'F.'", 'parameter "x" has no type hint'),
        ("a.py", "def f(*x: int):\n    'F.'", 'has the parameter "*x: int"'),
        ("a.py", "def f(x: 'Y'):\n    'F.'", "has a hint that cannot be read"),
        ("a.py", "def f(x: complex):\n    'F.'", "is of type complex"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "is no list of tools"),
        ("a.json", "[]", "has no tool"),
        ("a.json", '[{"name": 3}]', "tool 0 has no name"),
        ("a.json", '[{"name": "a"}, {"name": "a"}]', "names a tool twice"),
    ],
)
def test_a_file_without_usable_tools_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_tools(write(tmp_path, name, text))
    assert said in caught.value.what


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_tools(tmp_path / "tools.py")


def test_calls_are_read_and_kept_as_templates_take_them() -> None:
    text = 'Let me see.\n<tool_call>\n{"name": "a", "arguments": {"x": "</b>"}}\n</tool_call>\n<tool_call>{"name": "b"}'
    message = with_calls({"role": "assistant", "content": text + "</tool_call>"})
    assert message["content"] == "Let me see."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "a", "arguments": {"x": "</b>"}},
        {"name": "b", "arguments": {}},
    ]
    assert calls_of(message) == [ToolCall("a", {"x": "</b>"}), ToolCall("b", {})]
    assert [call.name for call in read_calls(text)] == ["a"]  # the second one has no end


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ('{"name": "a", "arguments": {"x": }}', "the call is not JSON"),
        ('["a"]', 'the call has no "name"'),
        ('{"name": "a", "arguments": "x"}', 'the arguments of "a" are not an object'),
    ],
)
def test_a_broken_call_is_told(call: str, error: str) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"}
    assert with_calls(message) == message
    (found,) = calls_of(message)
    assert found.error is not None and error in found.error
