"""Where a run comes from: tokenizer -> pretrain -> sft -> dpo, as far as these runs are there."""

from __future__ import annotations

from dataclasses import dataclass

from mmcli.report.overview import parent_name
from mmcli.run import Run, list_runs


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage: a run, or only the name of what is gone or is no run."""

    name: str
    run: Run | None


def lineage(run: Run) -> list[Ancestor]:
    """The tokenizer, the runs that each started from the one before, and this run."""
    found, seen, now = [Ancestor(run.name, run)], {run.path.resolve()}, run
    while (name := parent_name(now)) is not None:
        parent = next((each for each in list_runs(now.path.parent) if each.name == name), None)
        found.insert(0, Ancestor(name, parent))
        if parent is None or parent.path.resolve() in seen:
            break
        seen.add(parent.path.resolve())
        now = parent
    fingerprint = now.info().get("tokenizer")
    for each in list_runs(now.path.parent):
        if each.stage == "tokenizer" and fingerprint is not None and each.info().get("fingerprint") == fingerprint:
            return [Ancestor(each.name, each), *found]
    return found
