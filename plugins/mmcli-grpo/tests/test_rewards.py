"""Rewards and tools: the built-in ones, those of a Python file, and what goes wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmcli_grpo.python_file import load_python_function
from mmcli_grpo.rewards import WeightedReward, exact_answer, load_rewards, overlong, split_reward, well_formed
from mmcli_grpo.tools import Call, answer, calculator, find_calls, load_tools

from mmcli.api import Attempt, UserError

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 * 3"}}\n</tool_call>'


def attempt(reply: str, wanted: str = "", **values: Any) -> Attempt:
    turns = ({"role": "assistant", "content": reply},)
    return Attempt(prompt=({"role": "user", "content": "?"},), answer=wanted, reply=reply, turns=turns, **values)


@pytest.mark.parametrize(
    ("reply", "wanted", "score"),
    [
        ("3 + 4 = 7", "It is 7.", 1),
        ("7", "3 + 4 = 7", 1),
        ("7 or 8", "7", 0),
        ("17", "7", 0),
        ("1,234.50", "the sum: 1234.5", 1),
        ("-4", "4", 0),
        ("等于 ７。", "3 + 4 = 7", 1),
        (" PARIS. ", "Paris", 1),
        ("Rome", "Paris", 0),
        ("no idea", "7", 0),
        (CALL, "3", 0),
    ],
)
def test_exact_answer(reply: str, wanted: str, score: float) -> None:
    assert exact_answer(attempt(reply, wanted)) == score
    assert exact_answer(attempt(reply, wanted, ended=False)) == 0


def test_format_and_length() -> None:
    assert well_formed(attempt("7")) == well_formed(attempt(CALL)) == 1
    assert well_formed(attempt("7", ended=False)) == well_formed(attempt(" ")) == 0
    assert well_formed(attempt('<tool_call>\n{"name": \n</tool_call>')) == 0
    lengths = {tokens: overlong(attempt("7", tokens=tokens, max_new_tokens=100)) for tokens in (10, 50, 75, 100)}
    assert lengths == {10: 0, 50: 0, 75: -0.5, 100: -1}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 * 13", "156"), ("7 / 2", "3.5"), ("8/2", "4"), ("-(2+3) % 4", "3"), ("6 ÷ 3 × 2", "4"), ("7 // 2", "3")],
)
def test_the_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize("expression", ["", "1/0", "__import__('os')", "9**9**9", "x", "1 +", "9" * 300, "1e30*9"])
def test_the_calculator_refuses_everything_else(expression: str) -> None:
    assert answer(Call("calculator", {"expression": expression}), load_tools(())).startswith("error: ")


def test_calls_are_found_and_answered() -> None:
    assert [answer(call, load_tools(())) for call in find_calls(f"Let me see. {CALL}\n{CALL}")] == ["6", "6"]
    assert find_calls('<tool_call>{"name": 3}</tool_call><tool_call>{broken}</tool_call>') == []
    assert answer(Call("weather", {}), {}) == "error: there is no tool weather"
    assert answer(Call("calculator", {"sum": 1}), load_tools(())).startswith("error: TypeError")


def test_rewards_of_a_file_have_weights(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def score(attempt):\n    return len(attempt.reply)\n", encoding="utf-8")
    assert split_reward(f"{file}:score:0.5") == (f"{file}:score", 0.5)
    assert split_reward("length:2") == ("length", 2.0) and split_reward("length") == ("length", 1.0)
    [reward] = load_rewards([f"{file}:score:0.5"])
    assert (reward.name, reward.weight, reward.score(attempt("four"))) == ("score", 0.5, 4.0)


@pytest.mark.parametrize(
    ("code", "argument", "said"),
    [
        ("def score(a):\n    return 1\n", "my.py:other", "no function other"),
        ("def score(a:\n", "my.py:score", "SyntaxError: '(' was never closed (my.py:1)"),
        ("import nothing_like_it\n", "my.py:score", "ModuleNotFoundError: No module named 'nothing_like_it' (my.py:1)"),
        ("raise SystemExit(3)\n", "my.py:score", "SystemExit: 3 (my.py:1)"),
        ("", "none.py:score", "there is no file"),
        ("", "my.py", "names no function"),
        ("x = 1\n", "my.py:x", "no function x"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, code: str, argument: str, said: str) -> None:
    (tmp_path / "my.py").write_text(code, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_python_function(str(tmp_path / argument), "reward")
    assert said in caught.value.what and caught.value.fix


def test_a_reward_that_fails_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("def score(attempt):\n    return 1 / 0\n", encoding="utf-8")
    [reward] = load_rewards([f"{tmp_path / 'my.py'}:score"])
    with pytest.raises(UserError, match=r'the reward "score" failed: ZeroDivisionError.*\(my\.py:2\)'):
        reward.score(attempt("7"))


@pytest.mark.parametrize("value", [None, "1", float("nan"), float("inf"), [1.0]])
def test_a_reward_that_gives_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match='the reward "odd" gave'):
        WeightedReward("odd", lambda attempt: value).score(attempt("7"))


def test_what_is_no_reward() -> None:
    with pytest.raises(UserError, match="has the weight 0"):
        split_reward("length:0")
    with pytest.raises(UserError, match='there is no reward "exact_anser"'):
        load_rewards(["exact_anser"])
