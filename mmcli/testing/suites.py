"""The checks of a suite of questions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmcli.evaluation.figures import measure_suite
from mmcli.evaluation.suites import Suite, find_suite
from mmcli.plugins import installed
from mmcli.run import ModelRef
from mmcli.testing.checks import Check, attempt, check_loads, two_lines
from mmcli.testing.tiny import tiny_model


def check_suite(name: str, *, folder: Path) -> Iterator[Check]:
    """What every suite must do, one check after the other.

    Args:
        folder: where a tiny model is written.

    Raises:
        UserError: there is no such suite.
        MmcliError: it cannot be loaded.
    """
    suite = find_suite(name)
    for plugin in installed():
        if (plugin.kind, plugin.name) == ("suite", name):
            yield check_loads(dataclasses.asdict(plugin))
    if suite.measure:
        what = "an argument that means nothing is refused in two lines"
        yield attempt(what, lambda: two_lines(lambda: measure_suite(_tiny(folder), f"{name}:no such thing")))
        return
    yield attempt("has questions, each with an id of its own, the same every time", lambda: _items(suite))
    yield attempt("its judge takes each first answer, and no empty reply", lambda: _judge(suite))
    yield attempt("a tiny model can be asked", lambda: _asked(name, folder))


def _items(suite: Suite) -> str | None:
    items, again = suite.load_items(), suite.load_items()
    id, count = Counter(item.id for item in items).most_common(1)[0]
    if count > 1:
        return f"{count} questions have the id {id}"
    if items != again:
        return "a second call gives other questions"
    silent = [item.id for item in items if item.messages[-1].get("role") == "assistant" or not item.answers]
    return f"{silent[0]} has no answer, or ends in one" if silent else None


def _judge(suite: Suite) -> str | None:
    judge = suite.load_judge()
    for item in suite.load_items():
        if not judge(item, item.answers[0]):
            return f"{item.id}: the answer {item.answers[0]!r} is judged wrong"
        if judge(item, ""):
            return f"{item.id}: an empty reply is judged right"
    return None


def _asked(name: str, folder: Path) -> str | None:
    from mmcli.evaluation.evaluate import evaluate

    result = evaluate(_tiny(folder), name, limit=1, max_new_tokens=4, device="cpu")
    return None if result.total.total > 0 else "no question was asked"


def _tiny(folder: Path) -> ModelRef:
    return ModelRef(tiny_model(folder / "tiny-model"), None)
