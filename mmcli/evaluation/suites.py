"""Suites: what one is, and the built-in and installed ones by name. No torch here.

A plugin adds a suite with an entry point of the group `mmcli.suites` that names a `Suite`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmcli.errors import MmcliError, UserError, did_you_mean
from mmcli.plugins import contained, installed, load, load_function

PREFERENCES = "preferences"  # a measure that is asked for as a suite is; see preferences.py
_BUILT_IN = {"demo": ("mmcli.evaluation.demo_suite", "DEMO")}


@dataclass(frozen=True, kw_only=True)
class SuiteItem:
    """One question of a suite.

    Attributes:
        messages: what the model is asked, as the chat template takes it; the last one is not the assistant's.
        answers: right replies, as they are shown to people; the judge may accept others.
        family: items of one family have a score of their own.
        language: "en", "zh" or another; of a base model's prompt ("Question: ... Answer:"), and scored apart.
        tools: schemas of functions that the chat template shows; None for a template without them.
        data: whatever else the judge needs.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    family: str = "all"
    language: str = "en"
    tools: tuple[Mapping[str, Any], ...] | None = None
    data: Any = field(default=None, repr=False)


Judge = Callable[[SuiteItem, str], bool]
"""(item, reply) -> whether the reply is right. The reply is the text after any reasoning, a tool call as the model
writes it: `<tool_call>...</tool_call>`."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Questions with a judge, or a measure of its own, registered as an entry point of the group `mmcli.suites`."""

    name: str  # mmcli eval --suite <name>
    summary: str
    items: str = ""  # "package.module:function", called without arguments; it returns a sequence of SuiteItem
    judge: str = ""  # "package.module:function", called with (item, reply); True if the reply is right
    measure: str = ""  # in place of both: called with a SuiteRequest; it returns a sequence of Figure
    version: str = "1"  # of the questions: scores of two versions are not compared
    api: int = 1  # the API_VERSION that it was written for

    def __post_init__(self) -> None:
        if bool(self.measure) == bool(self.items and self.judge) or bool(self.items) != bool(self.judge):
            raise ValueError("a Suite has items and a judge, or a measure")

    def load_items(self) -> list[SuiteItem]:
        """The questions.

        Raises:
            MmcliError: its function cannot be imported, fails, or gives something else.
        """
        what, fix = f'the suite "{self.name}" has no usable questions', "update or remove the package that it is of"
        function = load_function(self.items, f'the suite "{self.name}"')
        with contained(what, fix):
            items = list(function())
        if not items:
            raise MmcliError(f"{what}: {self.items} gives none", fix)
        for item in items:
            if not isinstance(item, SuiteItem) or not item.messages:
                raise MmcliError(f"{what}: {type(item).__name__} is no SuiteItem with messages", fix)
        return items

    def load_judge(self) -> Judge:
        """The judge; what it raises becomes an MmcliError that names the suite and the question.

        Raises:
            MmcliError: it cannot be imported.
        """
        function = load_function(self.judge, f'the suite "{self.name}"')

        def judge(item: SuiteItem, reply: str) -> bool:
            with contained(f'the suite "{self.name}" cannot judge {item.id}', "update or remove the package"):
                return bool(function(item, reply))

        return judge


def suite_names() -> list[str]:
    """The built-in suites, then those of installed plugins. Nothing of a plugin is loaded."""
    return list(dict.fromkeys([*_BUILT_IN, *(each.name for each in installed() if each.kind == "suite")]))


def split_suite(suite: str) -> tuple[str, str]:
    """(name, argument) of NAME or NAME:ARGUMENT."""
    name, _, argument = suite.partition(":")
    return name, argument


def find_suite(suite: str) -> Suite:
    """The suite that NAME or NAME:ARGUMENT names.

    Raises:
        UserError: there is none, several packages claim the name, or it takes no argument.
        MmcliError: it is an installed plugin's and cannot be loaded.
    """
    name, argument = split_suite(suite)
    found = _find(name)
    if argument and not found.measure:
        raise UserError(f'the suite {name} takes no argument, and got "{argument}"', f"give --suite {name}")
    return found


def _find(name: str) -> Suite:
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        suite: Suite = getattr(importlib.import_module(module), attribute)
        return suite
    for plugin in installed():
        if (plugin.kind, plugin.name) == ("suite", name):
            return load(plugin, Suite)
    if name == PREFERENCES:
        raise UserError(f"{name} are measured, not asked", "call measure_preferences of mmcli.api")
    raise UserError(f'there is no suite "{name}"', did_you_mean(name, [*suite_names(), PREFERENCES]))


def choose_items(items: Sequence[SuiteItem], per_family: int) -> list[SuiteItem]:
    """At most `per_family` items of each family, its languages in equal parts, evenly spread, in their order.

    Raises:
        UserError: `per_family` is below 1.
    """
    if per_family < 1:
        raise UserError(f"--limit {per_family} leaves no question", "give 1 or more")
    groups: dict[str, dict[str, list[int]]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.family, {}).setdefault(item.language, []).append(number)
    chosen: list[int] = []
    for languages in groups.values():
        left = per_family
        # The smallest group first: what it cannot fill goes to the others.
        for rest, group in zip(range(len(languages), 0, -1), sorted(languages.values(), key=len), strict=True):
            count = min(-(-left // rest), len(group))
            chosen += [group[i * len(group) // count] for i in range(count)]
            left -= count
    return [items[number] for number in sorted(chosen)]
