"""One check and its outcome; the checks that configs and help texts of every kind share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcli.config import Layer, leaves, resolve
from mmcli.errors import MmcliError, Terminated, UserError
from mmcli.plugins import cause

CHECKED = ("stage", "adapter", "suite", "reward")  # kinds of entry points that have checks
TIMEOUT_SECONDS = 300.0
NUMBERS = (-1, 0, 1, 10**12)
ODD = {  # values that a person may type, by the type of a key; a config accepts each of them or refuses it in two lines
    int: NUMBERS,
    float: (*map(float, NUMBERS), 0.5, float("nan"), float("inf")),
    str: ("", "no such thing", ","),
}
LOAD = """
import json, sys
from mmcli.plugins import Plugin, load
from mmcli.testing.checks import interface
plugin = Plugin(**json.loads(sys.argv[1]))
load(plugin, interface(plugin.kind))
sys.exit("it imports torch" if "torch" in sys.modules else 0)
"""


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what must hold, in words.
        problem: why it does not; empty where it holds.
    """

    name: str
    problem: str = ""


def attempt(name: str, check: Callable[[], str | None]) -> Check:
    """The outcome of a check, which returns its problem or raises it; None: it holds."""
    try:
        return Check(name, check() or "")
    except (KeyboardInterrupt, Terminated):
        raise
    except MmcliError as error:
        return Check(name, f"{error.what} ({error.fix})")
    except BaseException as error:  # even SystemExit of a plugin is its own failure alone
        return Check(name, cause(error))


def interface(kind: str) -> type[Any]:
    """The class of what an entry point of this kind names."""
    from mmcli.evaluation.suites import Suite
    from mmcli.rewards import Reward
    from mmcli.stage import Adapter, Stage

    found: type[Any] = {"stage": Stage, "adapter": Adapter, "suite": Suite, "reward": Reward}[kind]
    return found


def run_python(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run another Python that finds the same packages as this one."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_SECONDS,
    )


def last_lines(text: str) -> str:
    """What a process said at its end, in one line."""
    return " ".join(line.strip() for line in text.strip().splitlines()[-2:])


def check_loads(plugin: Mapping[str, str]) -> Check:
    """Whether a plugin (the fields of `mmcli.plugins.Plugin`) is loaded without torch, in a process of its own."""
    import json

    def problem() -> str | None:
        done = run_python(["-P", "-c", LOAD, json.dumps(dict(plugin))])
        return last_lines(done.stderr) if done.returncode else None

    return attempt("loads without importing torch", problem)


def check_values(config: type, base: Sequence[Layer], own: Callable[[str], bool] = lambda key: True) -> Check:
    """Whether a config accepts odd values of its keys, or refuses them in two lines.

    Args:
        base: the layers of a configuration that is valid.
        own: which keys are tried.
    """

    def problem() -> str | None:
        for key, value in _odd_values(config):
            if not own(key):
                continue
            try:
                resolve(config, [*base, Layer("mmcli.testing", {key: value})])
            except UserError as error:
                if (fault := _not_two_lines(error)) is not None:
                    return f"{key} = {value!r}: {fault}"
            except Exception as error:
                return f"{key} = {value!r} raises {cause(error)}, not a ConfigError"
        return None

    return attempt("odd values are accepted, or refused in two lines", problem)


def _odd_values(config: type) -> Iterator[tuple[str, Any]]:
    for leaf in leaves(config):
        for kind, values in ODD.items():
            if leaf.type == kind or leaf.type == kind | None:
                yield from ((leaf.key, value) for value in values)


def _not_two_lines(error: MmcliError) -> str | None:
    """Why an error is not what is wrong in one line and what to do in another."""
    for name, text in (("what is wrong", error.what), ("what to do", error.fix)):
        if not text.strip() or "\n" in text:
            return f"{name} is not one line: {text!r}"
    return None


def two_lines(work: Callable[[], Any]) -> str | None:
    """Why `work` is not refused by a UserError of two lines; None: it is."""
    try:
        work()
    except UserError as error:
        return _not_two_lines(error)
    return "it is not refused"
