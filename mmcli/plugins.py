"""Stages, adapters, record kinds, suites and rewards that are installed: found in package metadata, loaded one by
one, each failure kept to itself.

No torch here. Finding loads nothing; `load` imports what one entry point names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, TypeVar

from mmcli.config import leaves, merge_layers
from mmcli.errors import MmcliError, Terminated, UserError
from mmcli.stage import API_VERSION, Adapter, Stage

OUR_PACKAGE = "mmcli"
GROUPS = {
    "mmcli.stages": "stage",
    "mmcli.adapters": "adapter",
    "mmcli.records": "record kind",
    "mmcli.suites": "suite",
    "mmcli.rewards": "reward",
}
SUITES = frozenset({"demo", "preferences"})  # of `mmcli eval --suite`: no plugin can take their names
UNREADABLE = "?"  # kind and name of what damaged metadata hide
COMMANDS = frozenset(  # the commands that are no stages: no plugin can take their names
    {
        *("demo", "tokenizer", "resume", "import", "eval", "chat", "export", "serve"),
        *("bench", "params", "presets", "config", "data", "plugins", "runs", "doctor", "plan"),
    }
)
_NAME = re.compile(r"[a-z][a-z0-9_]*")  # a part of a run folder's name: no "-"
_DASHED_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DASHED = ("reward", "suite")  # kinds whose names are never part of a path or of Python

S = TypeVar("S")


@dataclass(frozen=True)
class Plugin:
    """One entry point as the metadata tell it; nothing of the package is loaded."""

    kind: str  # a value of GROUPS
    name: str
    package: str
    version: str
    value: str  # "package.module:OBJECT"
    fault: str = ""  # why the metadata themselves are of no use

    @property
    def built_in(self) -> bool:
        return self.package == OUR_PACKAGE

    def __str__(self) -> str:
        return f'{self.kind} "{self.name}" of {self.package} {self.version}'.rstrip()


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """Every stage, adapter, record kind, suite and reward of every installed package, sorted, clashes included."""
    found: dict[Plugin, None] = {}
    packages: set[str] = set()
    for distribution in distributions():
        text = _read(distribution)
        if "mmcli." not in text:
            continue
        package, version = _identity(distribution)
        if package in packages:  # an older copy further back on sys.path, which Python would not import either
            continue
        packages.add(package)
        found.update(dict.fromkeys(_entries(distribution, package, version)))
    return tuple(sorted(found, key=lambda p: (p.kind, not p.built_in, p.name, p.package, p.value)))


def _read(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, ValueError):  # not readable, or not UTF-8
        return ""


def _identity(distribution: Distribution) -> tuple[str, str]:
    """(normalised name, version)."""
    metadata = distribution.metadata
    name, version = (str(metadata[key] or "") for key in ("Name", "Version"))
    return re.sub(r"[-_.]+", "-", name).lower() or "(a package without a name)", version


def _entries(distribution: Distribution, package: str, version: str) -> Iterator[Plugin]:
    try:
        points = list(distribution.entry_points)
    except Exception as error:  # importlib.metadata lets parse errors of every kind through
        fault = f"its entry_points.txt cannot be read: {cause(error)}"
        yield Plugin(UNREADABLE, UNREADABLE, package, version, "", fault)
        return
    for point in points:
        if point.group in GROUPS:
            yield Plugin(GROUPS[point.group], point.name, package, version, point.value)


@dataclass(frozen=True)
class Conflict:
    """Why a plugin cannot run, as far as metadata tell, and what to do about it."""

    cause: str
    fix: str


def stages() -> dict[str, Plugin]:
    """Every stage name that a person can type, loadable or not, with its entry point; the built-ins first."""
    by_name = dict[str, Plugin]()
    for plugin in installed():  # the built-ins come first, so none of their names can be taken
        if plugin.kind == "stage" and plugin.name not in COMMANDS and plugin.name.isidentifier():
            by_name.setdefault(plugin.name, plugin)
    return by_name


def conflict(plugin: Plugin) -> Conflict | None:
    """Why a plugin's name cannot be used: it is taken, or malformed. Plugins that share a name all lose it."""
    remove = f"remove the package: pip uninstall {plugin.package}"
    if plugin.fault:
        return Conflict(plugin.fault, remove)
    if plugin.built_in:
        return None
    named, letters = (_DASHED_NAME, "a-z, 0-9, _ and -") if plugin.kind in _DASHED else (_NAME, "a-z, 0-9 and _")
    if not named.fullmatch(plugin.name):
        return Conflict(f'the name "{plugin.name}" is not made of {letters}, a letter first', remove)
    same = [other for other in installed() if (other.kind, other.name) == (plugin.kind, plugin.name)]
    reserved = plugin.name in {"stage": COMMANDS, "suite": SUITES}.get(plugin.kind, frozenset())
    if reserved or any(other.built_in for other in same):
        return Conflict(f'the name "{plugin.name}" belongs to mmcli itself', remove)
    others = [other.package for other in same if other != plugin]
    if others:
        fix = f"keep one of them: {remove.partition(': ')[2]}, or pip uninstall {others[0]}"
        return Conflict(f'the name "{plugin.name}" is also taken by {", ".join(others)}', fix)
    return None


def load(plugin: Plugin, kind: type[S]) -> S:
    """Import what an entry point names.

    Raises:
        UserError: its name is taken (see `conflict`).
        MmcliError: it cannot be loaded, or is none of this kind and API; the package is named.
    """
    clash = conflict(plugin)
    if clash is not None:
        raise UserError(f"{plugin}: {clash.cause}", clash.fix)
    fix = f"update or remove it: pip install -U {plugin.package}, or pip uninstall {plugin.package}"
    with contained(f"{plugin} cannot be loaded", fix):
        found = EntryPoint(plugin.name, plugin.value, "").load()
    problem = _misfit(found, plugin, kind)
    if problem is not None:
        raise MmcliError(f"{plugin} {problem}", fix)
    return found


def load_function(path: str, of: str) -> Any:
    """The function that `path` ("package.module:function") names; `of` says whose it is.

    Raises:
        MmcliError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    with contained(f"{of} cannot run", f"check that the package with {module} is installed whole"):
        return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def contained(what: str, fix: str) -> Iterator[None]:
    """Turn whatever a plugin's code raises, even SystemExit, into one error; what it prints goes to stderr.

    Raises:
        MmcliError: `what`, with the cause. Our own errors and signals pass.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout may be a JSON document
            yield
    except (MmcliError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        raise MmcliError(f"{what}: {cause(error)}", fix) from error


def _misfit(found: Any, plugin: Plugin, kind: type[Any]) -> str | None:
    """Why a loaded object is of no use, or None."""
    if not isinstance(found, kind):
        return f"is {type(found).__name__} ({plugin.value}), not {kind.__module__}.{kind.__name__}"
    if found.api != API_VERSION:
        return f"needs plugin API {found.api}; this mmcli has {API_VERSION}"
    if found.name != plugin.name:  # runs and resume know a stage by its own name
        return f'calls itself "{found.name}"'
    if not isinstance(found, Stage | Adapter):
        return None
    if not dataclasses.is_dataclass(found.config) or not isinstance(found.config, type):
        return f"has a config that is no dataclass: {found.config!r}"
    try:
        for leaf in leaves(found.config):
            if leaf.default is dataclasses.MISSING:
                return f'has a config without a default for "{leaf.key}"'
        if isinstance(found, Stage):
            merge_layers(found.config, [found.layer])
    except UserError as error:
        return f"has defaults that its config refuses: {error.what}"
    except Exception as error:  # annotations that name nothing
        return f"has a config that cannot be read: {cause(error)}"
    return None


def cause(error: BaseException) -> str:
    """An error in one line: kind, text, and the place of a syntax error."""
    lines = str(error).splitlines()
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        lines = [str(error.msg)]
        place = f" ({Path(error.filename).name}:{error.lineno})"
    return f"{type(error).__name__}: {lines[0]}{place}" if lines else type(error).__name__
