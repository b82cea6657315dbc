"""Runs renamed, removed and pruned of checkpoints that nothing needs any more."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcli.errors import UserError
from mmcli.lock import is_locked
from mmcli.manifest import damage
from mmcli.run import CHECKPOINT_FILES, LOCK, Run, list_runs

CHECKPOINT = re.compile(r"^step-(\d+)$")


def disk_bytes(folder: Path) -> int:
    """Bytes of the files in a folder and below; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # replaced by a training that goes on
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def children(run: Run) -> list[Run]:
    """The runs of the same folder that started from this one, the oldest first."""
    found = []
    for other in list_runs(run.path.parent):
        with contextlib.suppress(UserError):  # one with a damaged resolved.toml names no parent
            parent = other.parent
            if parent is not None and parent.path.resolve() == run.path.resolve():
                found.append(other)
    return found


def needs_parent(run: Run) -> bool:
    """True of a run that cannot be resumed without the model that it started from: its checkpoints do not hold it."""
    if run.info()["state"] == "finished":
        return False
    try:
        adapter = run.read_config().get("train", {}).get("adapter")
    except UserError:
        return False
    return adapter is not None or not any(run.checkpoints.glob("step-*"))


# Rename


def rename_run(run: Run, name: str) -> Run:
    """Give a run another name; its number and stage stay. The run under its new name.

    What was started from it keeps finding it, since run.json tells its former names.

    Raises:
        UserError: the name cannot be one, is taken, the run is in use, or its folder cannot be renamed.
    """
    if not re.fullmatch(r"[\w.][\w.-]*", name):
        what = f'"{name}" cannot be the name of a run'
        raise UserError(what, "give letters, digits, dots, dashes and underscores, such as books-2")
    if name.isdecimal() or name == "latest":
        raise UserError(f'"{name}" would mean another run', "give a name that is neither a number nor `latest`")
    renamed = Run(run.path.with_name(f"{run.number:04d}-{run.stage}-{name}"))
    if renamed.path == run.path:
        return run
    if renamed.path.exists():
        raise UserError(f"{renamed.path} is there already", "choose another name")
    for other in list_runs(run.path.parent):
        if other.given_name == name and other.stage == run.stage:
            raise UserError(f'"{name}" is the name of {other.name}', "choose another name")
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        former = [each for each in run.former_names if each != renamed.name]
        run.update(former_names=[*former, run.name])
        if sys.platform == "win32":  # where a folder that holds an open file cannot be renamed
            stack.close()
        try:
            os.rename(run.path, renamed.path)
        except OSError as error:
            what = f"cannot rename {run.path}: {error.strerror}"
            raise UserError(what, "check the permissions of its folder, and that no program has it open") from None
        (renamed.path / LOCK).unlink(missing_ok=True)
    return renamed


# Remove


def refuse_removal(runs: Sequence[Run]) -> None:
    """Refuse to remove runs of which one is in use, or is needed by a run that stays.

    Raises:
        UserError: one of these.
    """
    gone = {run.path.resolve() for run in runs}
    for run in runs:
        if is_locked(run.path / LOCK):
            raise run.still_running()
        for child in children(run):
            if child.path.resolve() not in gone and needs_parent(child):
                what = f"{child.name} started from {run.name} and cannot be resumed without it"
                raise UserError(what, f"finish it first: mmcli resume {child.reference}; or remove both")


def remove_run(run: Run) -> int:
    """Remove a run and all that it holds; the bytes freed.

    Raises:
        UserError: it is in use, or a file cannot be removed.
    """
    size = disk_bytes(run.path)
    try:
        if run.path.is_symlink():
            run.path.unlink()
            return 0
        with run.lock():
            for path in run.path.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        run.path.rmdir()
    except OSError as error:
        what = f"cannot remove {error.filename or run.path}: {error.strerror}"
        raise UserError(what, f"check its permissions, then: mmcli runs remove {run.reference}") from None
    return size


# Prune


@dataclass(frozen=True)
class Pruned:
    """The checkpoints of a run that go, and those that stay."""

    run: Run
    removed: tuple[Path, ...]
    kept: tuple[Path, ...]
    bytes: int  # of the removed ones


def prunable(run: Run) -> Pruned:
    """What `prune_run` would remove: all checkpoints but the one that a resume loads.

    A resume loads the newest that is whole. A finished run is not resumed, so with its `model/` it needs none.
    """
    found = sorted((p for p in run.checkpoints.glob("step-*") if CHECKPOINT.match(p.name) and p.is_dir()), key=_step)
    whole = next((path for path in reversed(found) if damage(path, needed=CHECKPOINT_FILES) is None), None)
    done = run.info()["state"] == "finished" and (run.model / "config.json").is_file()
    first = 0 if whole is None else found.index(whole)
    first = len(found) if done else first
    removed, kept = tuple(found[:first]), tuple(found[first:])
    return Pruned(run, removed, kept, sum(map(disk_bytes, removed)))


def prune_run(run: Run) -> Pruned:
    """Remove the checkpoints that nothing needs any more.

    Raises:
        UserError: the run is in use, or a file cannot be removed.
    """
    with run.lock():
        pruned = prunable(run)
        for path in pruned.removed:
            try:
                shutil.rmtree(path)
            except OSError as error:
                what = f"cannot remove {error.filename or path}: {error.strerror}"
                raise UserError(what, "check the permissions of that folder") from None
    return pruned


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
