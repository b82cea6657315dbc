"""The data files that a path, folder or glob names: each real file once, and nothing that mmcli wrote itself.

Folders are read with all their folders, sorted by name, hidden names left out; links are followed. A file that is named
by itself is read whatever it is, as long as it is a file.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcli.data.formats.compression import COMPRESSED
from mmcli.errors import UserError

ENDINGS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow")  # which compress their own pages
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *TABLES)
SUPPORTED = (
    f"demo, hf:OWNER/NAME, or files that end in {', '.join((*TABLES, *ENDINGS))} "
    f"(those after {TABLES[-1]} also with {', '.join(COMPRESSED)})"
)

RUN_MARKS = ("config.toml", "metrics.jsonl", "model", "checkpoints")  # beside run.json
MODEL_MARKS = (
    "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json", "model.onnx",
    "pytorch_model.bin", "adapter_config.json", "generation_config.json",
)  # fmt: skip
MODEL_TEXTS = ("merges.txt", "vocab.txt")  # of a model's folder, beside all its JSON and Markdown
DATASET_FILES = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # of `datasets`
DATASET_CARD = re.compile(r"(?:readme|license|notice|changelog)(?:[._-][a-z]+)?\.(?:md|txt)", re.IGNORECASE)

RUN, MODEL, TWICE, CARD, DATASET = (
    "of runs", "of models and tokenizers", "found twice", "that describe a data set", "of saved data sets' bookkeeping",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The data files of one argument, in order, and how many others were left out for each reason."""

    paths: tuple[Path, ...]
    named: bool  # the argument is the file itself
    left_out: dict[str, int]


def find_files(name: str) -> Found:
    """The data files that one argument names.

    Raises:
        UserError: it names nothing, nothing but what mmcli wrote, or what is no file of a known ending.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = _choose(path, sorted(_walk(path)))
        if not found.paths:
            what = f"the folder {name} has no data file in it" + describe_left_out(found.left_out, ", only ")
            raise UserError(what, "name a file by itself" if found.left_out else f"put data there: {SUPPORTED}")
        return found
    if path.exists():
        if not path.is_file():
            raise UserError(f"{name} is a pipe or a device, not a file", "write its content to a file, and name that")
        if not is_known(path):
            raise UserError(f"{name} is of no known format", f"give {SUPPORTED}")
        return Found((path,), True, {})
    if not glob.has_magic(name):
        raise UserError(f"there is no file or folder {name}", "give a path that exists, or demo")
    base, files = _glob(path)
    found = _choose(base, files)
    if not found.paths:
        count = f"{len(files):,} files, none of a known format" if files else "no file"
        if found.left_out:
            count = "no file" + describe_left_out(found.left_out, " but ")
        raise UserError(f"the pattern {name} matches {count}", f"give {SUPPORTED}")
    return found


def describe_left_out(left_out: dict[str, int], before: str) -> str:
    """`before` and the files that are left out, in words; empty where none are."""
    parts = [f"{count:,} {'file' if count == 1 else 'files'} {reason}" for reason, count in left_out.items()]
    return before + ", ".join(parts) if parts else ""


def ending_of(path: Path) -> str:
    """The ending that tells the format, in small letters; that of the compression is not counted."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_known(path: Path) -> bool:
    """True if the ending of a file is one of a known format."""
    return ending_of(path) in ENDINGS or path.suffix.lower() in TABLES


def _choose(base: Path, files: Sequence[Path]) -> Found:
    """The data files among `files`, which lie under `base`."""
    origins = _Origins(base)
    known = [(item, origins.of(item)) for item in files if is_known(item)]
    with_records: set[Path] = set()  # folders that have records in them, or below
    for item, own in known:
        if own is None and ending_of(item) in RECORDS:
            with_records.update(item.parents)
    left_out, kept, seen = Counter[str](), list[Path](), set[object]()
    for item, own in known:
        stat = item.stat()
        real = (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(item)
        if own is None and DATASET_CARD.fullmatch(item.name) and item.parent in with_records:
            own = CARD
        if own is None and real in seen:
            own = TWICE
        if own is not None:
            left_out[own] += 1
        else:
            seen.add(real)
            kept.append(item)
    return Found(tuple(kept), False, dict(left_out))


class _Origins:
    """Tells of the files under a folder which of them are parts of runs, of models, or of the keeping of data sets."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._is_run = functools.cache(_is_run)
        self._is_model = functools.cache(_is_model)
        self._saved_parts = functools.cache(_saved_parts)

    def of(self, item: Path) -> str | None:
        """Of what a file is a part; None: it is data."""
        folders = [item.parent, *item.parent.parents]
        if self._base in folders:
            folders = folders[: folders.index(self._base) + 1]
        if any(map(self._is_run, folders)):
            return RUN
        if (item.suffix.lower() in (".json", ".md") or item.name in MODEL_TEXTS) and self._is_model(item.parent):
            return MODEL
        parts = self._saved_parts(item.parent) if item.suffix.lower() == ".arrow" else None
        beside = parts is not None and item.name not in parts
        return DATASET if beside or item.name in DATASET_FILES else None


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and any((folder / mark).exists() for mark in RUN_MARKS)


def _is_model(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MODEL_MARKS)


def _saved_parts(folder: Path) -> frozenset[str] | None:
    """The files that `save_to_disk` of `datasets` lists; None where it did not write the folder."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return frozenset(str(part["filename"]) for part in state["_data_files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _walk(base: Path, depth: int | None = None) -> Iterator[Path]:
    """Every file under a folder that is not hidden; each real folder once, by its own path where it has one here.

    Args:
        depth: levels of folders, 1 for the files of `base` alone; None for all.
    """
    seen: set[str] = set()
    folders, links = deque([(base, 1)]), deque[tuple[Path, int]]()
    while folders or links:
        folder, level = (folders or links).popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # a folder that cannot be read holds nothing for us
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield path
            elif entry.is_dir() and level != depth:
                (links if entry.is_symlink() else folders).append((path, level + 1))


def _glob(pattern: Path) -> tuple[Path, list[Path]]:
    """(the folder before the first part with `*`, `?` or `[`; the files that match the pattern, sorted as texts)."""
    parts = pattern.parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:first]), parts[first:]
    depth = None if "**" in rest else len(rest)
    files = (item for item in _walk(base, depth) if _matches(item.relative_to(base).parts, rest))
    return base, sorted(files, key=str)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:] or ("*",)) for skipped in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
