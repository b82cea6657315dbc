"""Rewards: what scores a reply that a model wrote in training, and the installed ones by name. No torch here.

A plugin adds a reward with an entry point of the group `mmcli.rewards` that names a `Reward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcli.errors import UserError, did_you_mean
from mmcli.find import find_model
from mmcli.plugins import installed, load, load_function


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A reply to a prompt, as a reward gets it.

    Attributes:
        prompt: the messages that were answered, the last one the user's.
        answer: the reply that the data has.
        reply: the text of the last turn that the model wrote, without reasoning, a tool call as the model writes it.
        reasoning: what it thought in that turn, "" for nothing.
        turns: all messages after the prompt: the model's turns, and the results of its tool calls.
        ended: the model ended its last turn itself; False: it was cut off.
        tokens: tokens that the model wrote, in all turns.
        max_new_tokens: how many it could have written.
        record: the fields of the record of the data.
    """

    prompt: tuple[Mapping[str, Any], ...]
    answer: str
    reply: str
    reasoning: str = ""
    turns: tuple[Mapping[str, Any], ...] = ()
    ended: bool = True
    tokens: int = 1
    max_new_tokens: int = 1
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)


RewardFunction = Callable[[Attempt], float]
"""Attempt -> its score, a function of the attempt alone: a resumed run, and every process, computes it anew."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A score of replies, registered as an entry point of the group `mmcli.rewards`."""

    name: str
    summary: str
    function: str  # "package.module:function", a `RewardFunction`
    of_model: bool = False  # a model scores, NAME=MODEL; the function takes its folder and returns a `RewardFunction`
    api: int = 1  # the API_VERSION that it was written for


def reward_names() -> list[str]:
    """The rewards of installed packages. Nothing of a package is loaded."""
    return [plugin.name for plugin in installed() if plugin.kind == "reward"]


def find_reward(name: str, runs_dir: Path = Path("runs")) -> RewardFunction:
    """The function of an installed reward: `exact-answer`, or with the model that scores `model=latest:reward`.

    Args:
        runs_dir: where runs that `name` may name are looked for.

    Raises:
        UserError: there is none, several packages claim the name, or a model is missing or named where none scores.
        MmcliError: it is there and cannot be loaded.
    """
    named, _, model = name.partition("=")
    for plugin in installed():
        if (plugin.kind, plugin.name) != ("reward", named):
            continue
        reward = load(plugin, Reward)
        function = load_function(reward.function, f'the reward "{named}"')
        if reward.of_model != bool(model):
            wanted = f"{named}=MODEL" if reward.of_model else named
            raise UserError(
                f'"{name}": {"no model is named" if reward.of_model else f"{named} takes no model"}',
                f"give it as {wanted}",
            )
        found: RewardFunction = function(find_model(model, runs_dir).path) if model else function
        return found
    raise UserError(f'there is no reward "{named}"', did_you_mean(named, reward_names()))
