"""Usage errors are told in the words of the command line, not in those of the parser."""

from __future__ import annotations

import pytest

from mmcli.cli import run


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        ("chat --seed abc", '--seed "abc" is not a whole number', "give --seed a whole number"),
        ("chat --top-p high", '--top-p "high" is not a number', "give --top-p a number"),
        ("chat --backend onx", '--backend "onx" is not one of torch, onnx', 'did you mean "onnx"?'),
        ("chat --backend tpu", '--backend "tpu" is not one of torch, onnx', "choose one of: onnx, torch"),
        ("demo --limit 0", "--limit 0 is below 1", "give 1 or more"),
        ("chat 7 hello", 'unexpected argument: "hello"', "write it like: mmcli chat [OPTIONS] [MODEL]; quote a text"),
        ("chat --temperature", "--temperature needs a value", "see: mmcli chat --help"),
        ("chat --json=yes", "--json takes no value", "see: mmcli chat --help"),
        ("pretrain --seqlen 5", "No such option: --seqlen", 'did you mean "--seq-len"?'),
        ("params --foo", "No such option: --foo", "see: mmcli params --help"),
        ("params cuont", 'mmcli params has no command "cuont"', 'did you mean "count"?'),
        ("presets shwo", 'mmcli presets has no command "shwo"', 'did you mean "show"?'),
        ("pretain", 'there is no command "pretain"', 'did you mean "pretrain"?'),
        ("config show pretain", '"pretain"', 'did you mean "pretrain"?'),
        ("presets show", "NAME is missing", "write it like: mmcli presets show [OPTIONS] NAME"),
        ("params count --set", "--set needs a value", "see: mmcli params count --help"),
    ],
)
def test_usage_errors(argv: str, what: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: ") and what in first
    assert second.startswith("  fix: ") and fix in second
