"""The commits of a run's data sets of the hub: chosen when the run begins, read back when it is resumed."""

from __future__ import annotations

from dataclasses import replace

from mmcli.data.config import DataConfig
from mmcli.data.sources.hub import COMMIT, NAME, PREFIX, find_commit
from mmcli.data.sources.sources import is_hub, split_weight
from mmcli.run import Run


def pin_data(data: DataConfig, run: Run) -> DataConfig:
    """`data` with the commit of each data set of the hub, the same ones when the run is resumed.

    Raises:
        UserError: there is no such data set, the hub cannot be reached, or a weight is not above 0.
    """
    sources = tuple(pin(each, run) for each in data.sources)
    val = None if data.val is None else tuple(pin(each, run) for each in data.val)
    return replace(data, sources=sources, val=val)


def pin(argument: str, run: Run) -> str:
    """One argument of `--data` with the commit of its data set of the hub, as `run` keeps it.

    Raises:
        UserError: there is no such data set or revision, or the hub cannot be reached.
    """
    name, _ = split_weight(argument)
    return _with_commit(name, run) + argument.removeprefix(name) if is_hub(name) else argument


def _with_commit(name: str, run: Run) -> str:
    match = NAME.fullmatch(name)
    if match is None:
        return name  # `open_hub` refuses it
    repo, revision = match.group("repo", "revision")
    if revision is not None and COMMIT.fullmatch(revision):
        return name
    written = PREFIX + repo if revision is None else f"{PREFIX}{repo}@{revision}"
    commit = run.choose(written, lambda: find_commit(repo, revision))
    return f"{PREFIX}{repo}@{commit}{name.removeprefix(written)}"
