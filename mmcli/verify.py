"""Every file of a run compared with its checksum, or read where it has none; and the token caches of a runs folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmcli.data.encode.cache import TOKEN_CACHES, TokenCache, is_outdated
from mmcli.data.encode.stored import META, DamagedCacheError
from mmcli.errors import UserError
from mmcli.inputs import config_input, difference, read_inputs
from mmcli.lock import Locked, file_lock, is_locked
from mmcli.manifest import damages, has_manifest
from mmcli.run import CHECKPOINT_FILES, EVALUATIONS, LOCK, RESOLVED, Run

COPY = "restore it from a copy"


@dataclass(frozen=True)
class Fault:
    """A damaged or missing file."""

    what: str
    fix: str


@dataclass(frozen=True)
class Verified:
    """What was found in a run, or in a token cache."""

    name: str
    files: int
    bytes: int
    faults: tuple[Fault, ...]
    removed: tuple[Path, ...] = ()  # what killed processes had left


@dataclass(frozen=True)
class _Part:
    """A folder of a run that was written with a manifest."""

    path: Path
    needed: tuple[str, ...]  # files that it cannot be without
    fix: str


def verify_run(run: Run) -> Verified:
    """Check every file of a run; temporary folders of processes that died are removed."""
    try:
        with file_lock(run.path / LOCK) as held:
            removed = run.tidy(alone=held)
    except (Locked, OSError):  # somebody works on it, or the folder cannot be written
        removed = []
    faults = _faults(run)
    if faults and is_locked(run.path / LOCK):  # a folder may have been replaced while it was read
        faults = _faults(run)
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name != LOCK]
    return Verified(run.name, len(files), sum(map(_size, files)), faults, tuple(removed))


def verify_cache(folder: Path) -> Verified:
    """Check a token cache."""
    faults = []
    try:
        TokenCache(folder)
    except DamagedCacheError as error:
        faults.append(Fault(str(error), f"delete {folder}; it is made again from the data when it is needed"))
    files = [path for path in folder.iterdir() if path.is_file()]
    return Verified(f"{TOKEN_CACHES}/{folder.name[:12]}", len(files), sum(map(_size, files)), tuple(faults))


def list_caches(runs_dir: Path, run: Run | None = None) -> list[Path]:
    """The token caches of a runs folder; of `run`: the one that run.json names, if it is still there."""
    found = sorted(path.parent for path in (runs_dir / TOKEN_CACHES).glob(f"*/{META}"))
    if run is not None:
        data = run.info().get("data")
        key = data.get("cache") if isinstance(data, dict) else None
        found = [path for path in found if path.name == key]
    return [path for path in found if not is_outdated(path)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # replaced by a training that goes on
        return 0


def _faults(run: Run) -> tuple[Fault, ...]:
    found = [Fault(str(each), part.fix) for part in _parts(run) for each in damages(part.path, needed=part.needed)]
    plain = list(_plain_faults(run))
    return (*found, *plain, *(() if plain else _seal_faults(run)))


def _parts(run: Run) -> Iterator[_Part]:
    for path in sorted(run.checkpoints.glob("step-*")):
        yield _Part(path, CHECKPOINT_FILES, f"delete {path}: resume then uses the one before it")
    if run.model.is_dir():
        yield _Part(run.model, ("tokenizer.json",), COPY)
    for path in sorted(run.exports.glob("*")):
        if path.is_dir():
            yield _Part(path, ("export.json",), f"delete {path} and export the model again")
    for path in sorted(run.path.iterdir()):
        if path.is_dir() and path not in (run.model, run.checkpoints, run.exports) and has_manifest(path):
            yield _Part(path, (), COPY)


def _plain_faults(run: Run) -> Iterator[Fault]:
    """Of files without a checksum: what cannot be read as what it is."""
    for path, read in ((run.path / "run.json", _read_table), *((path, _read_toml) for path in run.path.glob("*.toml"))):
        if (problem := _problem(path, read)) is not None:
            yield Fault(f"{path} {problem}", COPY)
    evaluations = run.path / EVALUATIONS
    if evaluations.is_file() and (problem := _problem(evaluations, _read_table)) is not None:
        yield Fault(f"{evaluations} {problem}", f"delete it, and measure again: mmcli eval {run.reference}")
    for path in sorted(run.path.glob("*.jsonl")):
        if (problem := _problem(path, _read_lines)) is not None:
            yield Fault(f"{path} {problem}", f"restore it from a copy, or delete that line of {path.name}")


def _seal_faults(run: Run) -> Iterator[Fault]:
    """Of the files that tell what a run is, which carry digests of themselves or of each other."""
    try:
        inputs, tables = read_inputs(run), run.read_config()
        run.read_config(RESOLVED)
    except UserError as damaged:
        yield Fault(damaged.what, damaged.fix)
        return
    if "config" in inputs and (changed := difference(inputs["config"], config_input(tables))) is not None:
        name, before, now = changed
        yield Fault(f"{run.path / 'config.toml'} was changed: {name} was {before}, is {now}", COPY)


def _problem(path: Path, read: Callable[[Path], None]) -> str | None:
    try:
        read(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return f"is damaged: {error}"
    return None


def _read_table(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("it is not a JSON table")


def _read_toml(path: Path) -> None:
    tomllib.loads(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> None:
    """Lines of JSON; the last may be cut short, where a process was killed."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            json.loads(line)
        except ValueError:
            if line.endswith(b"\n"):
                raise ValueError(f"line {number} is not JSON") from None
