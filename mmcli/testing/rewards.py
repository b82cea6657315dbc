"""The checks of a reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mmcli.plugins import cause, installed
from mmcli.rewards import Attempt, RewardFunction, find_reward
from mmcli.testing.checks import Check, attempt, check_loads

ASKED = ({"role": "user", "content": "What is 12 + 30?"},)
ANSWER = "12 + 30 = 42"
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12 + 30"}}\n</tool_call>'
REPLIES = ("12 + 30 = 42", "41", "", "  \n", "等于 42。", "x" * 5000, CALL, "<tool_call>\n{", "\x00�🙂", "1e999 nan")


def check_reward(name: str) -> Iterator[Check]:
    """What every reward must do, one check after the other.

    Args:
        name: as `--reward` takes it, with the model that scores: `exact-answer`, `model=latest:reward`.

    Raises:
        UserError: there is no such reward, or a model is missing.
        MmcliError: it cannot be loaded.
    """
    function = find_reward(name)
    for plugin in installed():
        if (plugin.kind, plugin.name) == ("reward", name.partition("=")[0]):
            yield check_loads(dataclasses.asdict(plugin))
    yield attempt("gives a finite number for any reply", lambda: _finite(function))
    yield attempt("gives the same for the same reply, and leaves it as it is", lambda: _repeats(function))


def attempts() -> list[Attempt]:
    """Replies as a model may write them, good ones and odd ones: whole, cut off, with reasoning and tool calls."""
    made = []
    for reply in REPLIES:
        for ended in (True, False):
            turns: list[dict[str, Any]] = [{"role": "assistant", "content": reply}]
            if reply == CALL:
                turns += [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "42"}]
            made.append(
                Attempt(
                    prompt=ASKED,
                    answer=ANSWER,
                    reply=turns[-1]["content"],
                    reasoning="12 + 30 is 42." if ended else "",
                    turns=tuple(turns),
                    ended=ended,
                    tokens=len(reply) // 4,
                    max_new_tokens=2000,
                    record={"messages": [*ASKED, {"role": "assistant", "content": ANSWER}]},
                )
            )
    return made


def _finite(function: RewardFunction) -> str | None:
    for each in attempts():
        try:
            value = function(each)
        except Exception as error:
            return f"for the reply {each.reply[:40]!r} it raises {cause(error)}"
        if not isinstance(value, int | float) and not hasattr(value, "__float__"):
            return f"for the reply {each.reply[:40]!r} it gives {type(value).__name__}, not a number"
        if not math.isfinite(float(value)):
            return f"for the reply {each.reply[:40]!r} it gives {value}"
    return None


def _repeats(function: RewardFunction) -> str | None:
    before = attempts()
    first = [float(function(each)) for each in before]
    if before != attempts():
        return "it changes what it is given"
    for each, value in zip(reversed(attempts()), reversed(first), strict=True):
        if float(function(each)) != value:
            return f"for the reply {each.reply[:40]!r} it gives {value}, then another number"
    return None
