"""One `--data` argument: the built-in corpus, a file, a folder, a glob or a data set of the hub, and its weight."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmcli.data.formats.files import HOW, DataFile, open_files
from mmcli.data.sources.hub import PREFIX, HubData, open_hub, pin_commit
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.data.config import DataConfig
    from mmcli.run import Run

DEMO = "demo"
WEIGHTED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)")


@dataclass(frozen=True)
class Part:
    """What one `--data` names: the built-in corpus, a data set of the hub, or files in order."""

    name: str
    weight: float | None = None
    demo: bool = False
    hub: HubData | None = None
    files: tuple[DataFile, ...] = ()


def split_weight(name: str) -> tuple[str, float | None]:
    """(what is named, its weight) of `PATH:WEIGHT`; a path that exists as it stands has no weight.

    Raises:
        UserError: the weight is not above 0.
    """
    match = WEIGHTED.fullmatch(name)
    if match is None or Path(name).expanduser().exists():
        return name, None
    path, weight = match[1], float(match[2])
    known = path == DEMO or path.startswith(PREFIX) or glob.has_magic(path) or Path(path).expanduser().exists()
    if not known:
        return name, None
    if not 0 < weight < float("inf"):
        raise UserError(f"{name}: the weight {match[2]} is not above 0", "give a share such as 0.3, or leave it out")
    return path, weight


def open_part(argument: str) -> Part:
    """What one argument names.

    Raises:
        UserError: it names nothing that can be read, or its weight is not above 0.
    """
    name, weight = split_weight(argument)
    if name == DEMO:
        return Part(name, weight, demo=True)
    if _is_hub(name):
        return Part(name, weight, hub=open_hub(name))
    return Part(name, weight, files=open_files(name))


def pin_data(data: DataConfig, run: Run) -> DataConfig:
    """`data` with the commit of each data set of the hub, the same ones when the run is resumed.

    Raises:
        UserError: there is no such data set, the hub cannot be reached, or a weight is not above 0.
    """
    sources = tuple(pin(each, run) for each in data.sources)
    val = None if data.val is None else tuple(pin(each, run) for each in data.val)
    return replace(data, sources=sources, val=val)


def pin(argument: str, run: Run) -> str:
    """One argument of `--data` with the commit of its data set of the hub, as `run` keeps it."""
    name, _ = split_weight(argument)
    return pin_commit(name, run) + argument.removeprefix(name) if _is_hub(name) else argument


def _is_hub(name: str) -> bool:
    return name.startswith(PREFIX) and not Path(name).exists()


def describe_part(part: Part) -> str:
    """One line for the person: what is read, how large it is, and how it is cut."""
    if part.demo:
        return "the built-in corpus"
    if part.hub is not None:
        return f"{part.hub.name} (as of {part.hub.revision[:7]})"
    if len(part.files) > 3:
        return describe_files(part.files)
    return ", ".join(f"{file.path.name} ({_size(file.size)}, {HOW[file.how]})" for file in part.files)


def describe_files(files: Sequence[DataFile]) -> str:
    """The same of many files together."""
    ways = Counter(file.how for file in files)
    each = "; ".join(f"{count:,} as {HOW[how]}" for how, count in ways.most_common())
    return f"{len(files):,} files ({_size(sum(file.size for file in files))}; {each})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
