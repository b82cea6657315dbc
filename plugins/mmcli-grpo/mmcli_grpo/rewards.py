"""Rewards: the built-in ones, and those that `--reward` names, weighted and added up. No torch here."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.api import Attempt, Reward, UserError, find_reward
from mmcli_grpo.python_file import is_python_file, load_python_function, place_of
from mmcli_grpo.tools import find_calls

EXACT_ANSWER = Reward(
    name="exact-answer",
    summary="1 if the answer is the one of the data, by its text or its last number.",
    function="mmcli_grpo.rewards:exact_answer",
)
FORMAT = Reward(
    name="format",
    summary="1 if the reply ends by itself, says something, and calls tools with valid JSON.",
    function="mmcli_grpo.rewards:well_formed",
)
LENGTH = Reward(
    name="length",
    summary="0 for a short reply, down to -1 for one of all tokens that it may have.",
    function="mmcli_grpo.rewards:overlong",
)
_NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?")
_EDGES = " .,!?;:。，！？；：\"'“”‘’()（）*`"
_WEIGHTED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)")


def exact_answer(attempt: Attempt) -> float:
    """1 for the right answer, 0 for another or one that was cut off.

    Where the answer of the data has a number, the last numbers of both are compared; else the texts, without
    differences of case, spaces and punctuation at their ends.
    """
    if not attempt.ended:
        return 0.0
    wanted, found = last_number(attempt.answer), last_number(attempt.reply)
    if wanted is not None:
        return float(found == wanted and "<tool_call>" not in attempt.reply)
    return float(normalise(attempt.reply) == normalise(attempt.answer))


def well_formed(attempt: Attempt) -> float:
    """1 for a reply that ended by itself, is not empty and leaves no broken tool call or open thought; else 0."""
    calls = [turn["content"] for turn in attempt.turns if turn["role"] == "assistant"]
    broken = any(text.count("<tool_call>") != len(find_calls(text)) for text in calls)
    return float(attempt.ended and bool(attempt.reply.strip()) and not broken)


def overlong(attempt: Attempt) -> float:
    """The soft punishment of long replies of DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13).

    0 up to half of `max_new_tokens`, from there in a straight line to -1.
    """
    if not attempt.ended:
        return -1.0
    return min(0.0, 1.0 - 2.0 * attempt.tokens / attempt.max_new_tokens)


def last_number(text: str) -> float | None:
    """The last number in a text, commas between its digits left out; None if there is none."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(found[-1].replace(",", "")) if found else None


def normalise(text: str) -> str:
    """NFKC, casefold, single spaces, no punctuation at either end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@dataclass(frozen=True)
class WeightedReward:
    """One `--reward`: its name, its function and its weight."""

    name: str
    function: Any
    weight: float = 1.0

    def score(self, attempt: Attempt) -> float:
        """The reward's own value, not weighted.

        Raises:
            UserError: it fails, or gives something that is no finite number.
        """
        try:
            value = self.function(attempt)
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise UserError(
                f'the reward "{self.name}" failed: {place_of(error)}', "correct it, then: mmcli resume"
            ) from error
        is_number = isinstance(value, int | float) or (hasattr(value, "item") and hasattr(value, "__float__"))
        if not is_number or not math.isfinite(float(value)):
            what = f'the reward "{self.name}" gave {value!r:.60} for a reply'
            raise UserError(what, "let it return a finite number, then: mmcli resume")
        return float(value)


def split_reward(argument: str) -> tuple[str, float]:
    """(what is named, its weight, 1 by default) of one `--reward`.

    Raises:
        UserError: the weight is 0.
    """
    match = _WEIGHTED.fullmatch(argument)
    name, weight = (match[1], float(match[2])) if match is not None else (argument, 1.0)
    if weight == 0:
        raise UserError(f'reward "{argument}" has the weight 0', "leave it out, or give it a weight such as 0.5")
    return name, weight


def load_rewards(arguments: Sequence[str]) -> list[WeightedReward]:
    """What each `--reward` names.

    Raises:
        UserError: there is no such reward, a file cannot be run, or two have one name.
        MmcliError: an installed reward cannot be loaded.
    """
    rewards: list[WeightedReward] = []
    for argument in arguments:
        named, weight = split_reward(argument)
        if is_python_file(named):
            name, function = load_python_function(named, "reward")
        else:
            name, function = named.partition("=")[0], find_reward(named)
        if any(other.name == name for other in rewards):
            raise UserError(f'two rewards are called "{name}"', "give each once, with its weight")
        rewards.append(WeightedReward(name, function, weight))
    return rewards


def score_all(rewards: Sequence[WeightedReward], attempts: Sequence[Attempt]) -> Mapping[str, list[float]]:
    """The values of every reward, by name, not weighted.

    Raises:
        UserError: see `WeightedReward.score`.
    """
    return {reward.name: [reward.score(attempt) for attempt in attempts] for reward in rewards}
