"""The data of a run as it is found again when the run is resumed: commits of data sets of the hub, absolute paths of
files, and the content of both.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmcli.data.config import DataConfig
from mmcli.data.sources.hub import COMMIT, NAME, PREFIX, find_commit
from mmcli.data.sources.source import DEMO, is_hub, split_weight
from mmcli.data.sources.sources import Sources
from mmcli.errors import UserError
from mmcli.inputs import Input
from mmcli.run import RESOLVED, Run

MOST_PARTS = 1000  # files that inputs.json names one by one
PATH = "path:"  # begins the keys of resolved.toml that hold absolute paths


def pin_data(data: DataConfig, run: Run) -> DataConfig:
    """`data` with the commit of each data set of the hub and the absolute path of files, the same when it is resumed.

    Raises:
        UserError: there is no such data set, the hub cannot be reached, a file of a resumed run is gone, or a weight is
            not above 0.
    """
    sources = tuple(pin(each, run) for each in data.sources)
    val = None if data.val is None else tuple(pin(each, run) for each in data.val)
    return replace(data, sources=sources, val=val)


def pin(argument: str, run: Run) -> str:
    """One argument of `--data` with the commit of its data set of the hub, or its absolute path, as `run` keeps it.

    Raises:
        UserError: there is no such data set or revision, the hub cannot be reached, or a file that `run` keeps is gone.
    """
    name, weight = _split(argument, run)
    if is_hub(name):
        return _with_commit(name, run) + weight
    if name == DEMO:
        return argument
    key = PATH + name
    if (kept := run.read_config(RESOLVED).get(key)) is not None:
        path = str(kept)
        if not Path(path).exists() and not glob.has_magic(path):
            raise UserError(f"{run.name} reads {path}, which is gone", "put it back, or start a new run")
        return path + weight
    absolute = _absolute(name)
    if absolute is None:
        return argument
    run.choose(key, lambda: absolute)
    return absolute + weight


def as_read(argument: str, run: Run) -> tuple[str, str]:
    """(what is named, `:WEIGHT` or nothing) of an argument as an earlier run read it: by commit or absolute path."""
    name, weight = _split(argument, run)
    if is_hub(name):
        return _with_commit(name, run), weight
    return str(run.read_config(RESOLVED).get(PATH + name, name)), weight


def _split(argument: str, run: Run) -> tuple[str, str]:
    """(what is named, `:WEIGHT` or nothing); what `run` keeps a path of is told from its weight wherever we are."""
    kept = run.read_config(RESOLVED)
    if PATH + argument in kept:
        return argument, ""
    head, colon, weight = argument.rpartition(":")
    if colon and PATH + head in kept:
        return head, colon + weight
    name, _ = split_weight(argument)
    return name, argument.removeprefix(name)


def _absolute(name: str) -> str | None:
    """The absolute form of a path or glob; None if there is no such thing, which is refused where it is opened."""
    path = Path(name).expanduser()
    if path.exists():
        return str(path.absolute())
    if not glob.has_magic(name):
        return None
    return str(path if path.is_absolute() else Path(glob.escape(str(Path.cwd()))) / path)


def data_input(sources: Sources, hash_file: Callable[[Path], str]) -> Input:
    """The content of data: what differs is told file by file.

    Args:
        hash_file: the SHA-256 (hex) of a file's bytes.
    """
    content_of = functools.cache(hash_file)
    key = sources.fingerprint_by(content_of)
    parts: dict[str, str] = {}
    for source in sources.members:
        if source.hub is not None:
            parts[source.hub.name] = source.hub.revision
        elif source.demo:
            from mmcli.data import demo

            parts[DEMO] = str(demo.fingerprint(sources.seed))[:16]
    if len(sources.files) <= MOST_PARTS:
        parts |= {file.name: f"{content_of(file.path)[:16]} ({file.how})" for file in sources.files}
    return Input(key, parts)


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
