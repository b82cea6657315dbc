"""One argument of `--data`: the built-in corpus, files, a folder, a glob, or a data set of the Hugging Face hub, with a
weight or without.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmcli.data.formats.files import HOW, DataFile, open_files
from mmcli.data.sources.hub import PREFIX, HubData, open_hub
from mmcli.errors import UserError

DEMO = "demo"
DEMO_PART = re.compile(r"demo:([a-z_]+)")
DEMO_KINDS = ("text", "chat", "preference")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
WEIGHTED = re.compile(rf"(.+):({NUMBER})(?:\.\.({NUMBER}))?")


@dataclass(frozen=True)
class Weight:
    """The weight of a source in a mixture: at the first step of a training and, on a line from there, at the last."""

    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.start}" if self.start == self.end else f"{self.start}..{self.end}"


@dataclass(frozen=True)
class Source:
    """One argument of `--data`: the built-in corpus, a data set of the hub, or files in order."""

    name: str
    weight: Weight | None = None
    demo: bool = False
    kind: str | None = None  # of the built-in corpus; None: that of the data
    topic: str | None = None  # of the built-in corpus's conversations; None: all
    hub: HubData | None = None
    files: tuple[DataFile, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)  # files that its folder or glob has too, by reason

    def describe(self) -> str:
        """One line for the person: what is read, how large it is, and how it is cut."""
        if self.demo:
            part = self.topic or self.kind
            return "the built-in corpus" + (f" ({part})" if part else "")
        if self.hub is not None:
            return f"{self.hub.name} (as of {self.hub.revision[:7]})"
        if len(self.files) > 3:
            return describe_files(self.files)
        return ", ".join(f"{file.path.name} ({_size(file.size)}, {HOW[file.how]})" for file in self.files)


def open_source(argument: str) -> Source:
    name, weight = split_weight(argument)
    if name == DEMO:
        return Source(name, weight, demo=True)
    if part := _part_of_demo(name):
        kind, topic = part
        return Source(name, weight, demo=True, kind=kind, topic=topic)
    if is_hub(name):
        return Source(name, weight, hub=open_hub(name))
    files, left_out = open_files(name)
    return Source(name, weight, files=files, left_out=left_out)


def _part_of_demo(name: str) -> tuple[str, str | None] | None:
    """(kind, topic) of the part of the built-in corpus that `demo:chat` or `demo:arithmetic` names."""
    match = DEMO_PART.fullmatch(name)
    if match is None or Path(name).exists():
        return None
    if match[1] in DEMO_KINDS:
        return match[1], None
    from mmcli.data import demo

    return ("chat", match[1]) if demo.is_topic(match[1]) else None


def split_weight(name: str) -> tuple[str, Weight | None]:
    """(what is named, its weight) of `PATH:WEIGHT` or `PATH:START..END`; a path that exists as it stands has no weight.

    Raises:
        UserError: the weight is not above 0, or not at either end.
    """
    match = WEIGHTED.fullmatch(name)
    if match is None or Path(name).expanduser().exists():
        return name, None
    path, start = match[1], float(match[2])
    end = start if match[3] is None else float(match[3])
    built_in = path == DEMO or _part_of_demo(path) is not None
    if not (built_in or path.startswith(PREFIX) or glob.has_magic(path) or Path(path).expanduser().exists()):
        return name, None
    if not (0 <= start < float("inf") and 0 <= end < float("inf") and start + end > 0):
        written = name.removeprefix(f"{path}:")
        raise UserError(f"{name}: the weight {written} is not above 0", "give a share such as 0.3, or leave it out")
    return path, Weight(start, end)


def is_hub(name: str) -> bool:
    """True if an argument of `--data` names a data set of the hub."""
    return name.startswith(PREFIX) and not Path(name).exists()


def describe_files(files: Sequence[DataFile]) -> str:
    """One line for the person about many files together."""
    ways = Counter(file.how for file in files)
    each = "; ".join(f"{count:,} as {HOW[how]}" for how, count in ways.most_common())
    return f"{len(files):,} files ({_size(sum(file.size for file in files))}; {each})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
