"""What a run reads, by content: inputs.json in its folder, written as the run begins and compared when it is resumed.

    {"inputs": {"data": {"key": "9f0c...", "parts": {"/books/a.txt": "3fa2..."}}, ...}, "sha256": "..."}

An input is named `config`, `data`, `tokenizer`, `parent`, `reference` or `adapter`, or is one of several of a kind
(`data/val`). Equal keys mean equal content; the parts tell where a difference lies. The file holds its own digest.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmcli.errors import UserError, did_you_mean
from mmcli.run import INPUTS, Run, write_json
from mmcli.stage import StageContext

NOUNS = {
    "config": "config.toml",
    "data": "data",
    "tokenizer": "tokenizer",
    "parent": "starting model",
    "reference": "reference model",
    "adapter": "adapter",
}
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Input:
    """One thing that a run reads: a key of its content, and the parts by which a difference is named (JSON values)."""

    key: str
    parts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Input:
        """An input that is all told by its parts."""
        return cls(_digest(parts), parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_allowed(allow: Sequence[str]) -> frozenset[str]:
    """The kinds of input that may have changed, as `--allow-change` names them.

    Raises:
        UserError: there is no such kind.
    """
    for name in allow:
        if name not in NOUNS:
            raise UserError(f"--allow-change {name} is no input of a run", did_you_mean(name, list(NOUNS)))
    return frozenset(allow)


def config_input(tables: Mapping[str, Any]) -> Input:
    """The values of config.toml, as an input."""
    return Input.of(flat(tables))


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 5e-4} of nested tables."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def has_inputs(run: Run) -> bool:
    """False for a run that was started before runs kept what they read."""
    return (run.path / INPUTS).is_file()


def read_inputs(run: Run) -> dict[str, Input]:
    """The inputs that a run began with; none if it keeps none yet.

    Raises:
        UserError: the file is damaged.
    """
    path = run.path / INPUTS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["sha256"] != _digest(stored["inputs"]):
            raise ValueError("its digest differs")
        return {name: Input(**each) for name, each in stored["inputs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(run, path) from None


def damaged(run: Run, path: Path) -> UserError:
    """The refusal of a run that has lost a file which tells what it is."""
    return UserError(f"{path} is damaged", f"restore it from a copy, or start a new run: mmcli {run.stage}")


def difference(before: Input, now: Input) -> tuple[str, str, str] | None:
    """(what, before, now) of the first part that differs; None for equal inputs."""
    if before.key == now.key:
        return None
    for name in [*before.parts, *(name for name in now.parts if name not in before.parts)]:
        if before.parts.get(name) != now.parts.get(name):
            was, becomes = (_shown(each.parts[name]) if name in each.parts else "missing" for each in (before, now))
            return name, was, becomes
    return "content", before.key[:16], now.key[:16]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def pin_inputs(context: StageContext, found: Mapping[str, Input]) -> None:
    """Keep what a run reads; a resumed run must find it as it was, or be allowed the change, which run.json then tells.

    Raises:
        UserError: an input differs from what the run began with, and is not allowed to; or inputs.json is damaged.
    """
    run = context.run
    kept = read_inputs(run)
    changes = []
    for name, now in found.items():
        change = difference(kept[name], now) if name in kept else None
        if change is None:
            continue
        kind = name.partition("/")[0]
        if kind not in context.allow:
            raise _refusal(run, kind, *change)
        changes.append((kind, *change))
    merged = {**kept, **found}
    if merged != kept:
        inputs = {name: asdict(each) for name, each in merged.items()}
        write_json(run.path / INPUTS, {"inputs": inputs, "sha256": _digest(inputs)})
    if changes:
        _tell(context, changes)


def _refusal(run: Run, kind: str, what: str, before: str, now: str) -> UserError:
    return UserError(
        f"the {NOUNS[kind]} of {run.name} changed since it began: {what} was {before}, is {now}",
        "restore it, or accept that the run is no longer bit-exact: "
        f"mmcli resume {run.reference} --allow-change {kind}",
    )


def _tell(context: StageContext, changes: Sequence[tuple[str, str, str, str]]) -> None:
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = [dict(zip(("input", "what", "before", "now", "at"), (*change, at), strict=True)) for change in changes]
    context.run.update(changes=[*context.run.info().get("changes", []), *told])
    for kind, what, before, now in changes:
        context.report.warn(f"resumes, not bit-exactly: {NOUNS[kind]}, {what} {before} -> {now}")
