"""Markdown that grows in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mmcli.cli.chat_view import MarkdownStream, render, split_blocks, without_calls

TEXT = """# 标题

Some *words*, `code` and a [link](http://example.org).

```python
x = 1

y = 2
```

1. one

2. two

| a | b |
|---|---|
| 好 | 2 |

The end."""


def terminal() -> Console:
    return Console(file=io.StringIO(), width=40, height=20, force_terminal=True, color_system=None, highlight=False)


def shown(text: str, step: int) -> str:
    console = terminal()
    with MarkdownStream(console) as stream:
        for start in range(0, len(text), step):
            stream.write(text[start : start + step])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(text: str) -> list[str]:
    """The non-empty lines that stay on the screen, without the styles."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\r", "\n"))
    return [line.strip() for line in plain.splitlines() if line.strip()]


def test_a_cut_never_falls_into_a_block() -> None:
    assert split_blocks("one\n\ntwo") == ("one\n\n", "two")
    assert split_blocks("one\n\n") == ("", "one\n\n")  # what follows may belong to it
    assert split_blocks("```\na\n\nb") == ("", "```\na\n\nb")
    assert split_blocks("```\na\n\nb\n```\n\nc") == ("```\na\n\nb\n```\n\n", "c")
    assert split_blocks("- a\n\n- b\n\n  c") == ("", "- a\n\n- b\n\n  c")


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_what_is_left_on_the_screen_is_the_markdown_as_a_whole(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcli.cli.chat_view.REDRAW_SECONDS", 1e9)  # only what stays
    console = terminal()
    console.print(render(TEXT))
    assert isinstance(console.file, io.StringIO)
    assert lines(shown(TEXT, step)) == lines(console.file.getvalue())


def test_control_characters_and_hidden_addresses_do_not_reach_the_terminal() -> None:
    text = shown("a\x1b[2Jb \x9bc [name](http://evil.example)", 5)
    assert "\x1b[2J" not in text and "\x9b" not in text and "\x1b]8" not in text
    assert "http://evil.example" in text


def test_reasoning_is_folded() -> None:
    console = terminal()
    with MarkdownStream(console) as stream:
        stream.think()
        stream.write("Yes.")
    assert isinstance(console.file, io.StringIO)
    text = lines(console.file.getvalue())
    assert any(line.startswith("thought for 0.") and "/think" in line for line in text) and text[-1] == "Yes."


def test_a_call_that_can_be_run_is_left_out() -> None:
    call = ["<tool_call>", '{"name": "add", ', '"arguments": {"a": 2}}', "</tool_call>"]
    broken = ["<tool_call>", "2 * 3", "</tool_call>"]
    assert "".join(without_calls(["Well", ": ", *call, "\n", *call, " so."])) == "Well: \n so."
    assert "".join(without_calls(["a", *broken, "b"])) == "a<tool_call>2 * 3</tool_call>b"
    assert "".join(without_calls(["\ufffd<tool_call>", "cut"])) == "\ufffd<tool_call>cut"
    spelled = "".join(["Well ", *call, " so <b> and <tool"])
    assert "".join(without_calls(iter(spelled))) == "Well  so <b> and <tool"
