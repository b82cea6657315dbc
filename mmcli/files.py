"""Atomic files and folders: written beside, flushed to the disk, put in place in one step; whole or absent.

What a process that was killed has left beside a place is told by a lock file that nobody holds.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmcli.errors import MmcliError
from mmcli.lock import Locked, file_lock, is_locked
from mmcli.manifest import MANIFEST, write_manifest

LEFT_SECONDS = 24 * 3600.0  # age at which a temporary folder without a lock file is nobody's
_TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise MmcliError(f"cannot write {path}: {error.strerror}", "free space or choose another --runs-dir") from None
    finally:  # also where a signal ends the process: the file is whole in its place, or not there
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, seal it with a manifest, then put it in place.

    An old one is replaced in one step where the system can; else it lies at `previous(path)` in between. What killed
    writers of the same folder have left is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_beside(path)
    beside = _beside(path)
    try:
        with file_lock(_lock_of(beside)):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            try:
                yield beside
                _seal(beside)
                _put_in_place(beside, path)
            finally:
                _remove(beside)  # the old one, where the two were exchanged
    except Locked:
        raise MmcliError(f"{path} is being written already", "wait until that is done") from None
    except OSError as error:
        raise MmcliError(f"cannot write {path}: {error}", "free space or choose another --runs-dir") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file at the given place beside `path`, then put it there in one step; nothing is left of a failure.

    What killed writers of the same file have left is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_beside(path)
    beside = _beside(path)
    try:
        with file_lock(_lock_of(beside)):
            try:
                yield beside
                with open(beside, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(beside, path)
                sync_directory(path.parent)
            finally:
                beside.unlink(missing_ok=True)
    except Locked:
        raise MmcliError(f"{path} is being written already", "wait until that is done") from None
    except OSError as error:
        raise MmcliError(f"cannot write {path}: {error}", "free space or choose another --out") from None


def _remove_left_beside(path: Path) -> None:
    """Remove what killed writers of `path` have left."""
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*.tmp.lock"):
        _remove_if_left(lock.with_suffix(""))


def _beside(path: Path) -> Path:
    """Where this process writes what will be at `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def previous(path: Path) -> Path:
    """Where the old version of a folder lies while it is replaced, on systems that cannot exchange two folders."""
    return path.with_name(f".{path.name}.old")


def _lock_of(beside: Path) -> Path:
    """The lock file that the writer of a temporary folder holds."""
    return beside.with_name(beside.name + ".lock")


def _seal(folder: Path) -> None:
    """Write the manifest, and give every file its mode: safetensors makes files that only their owner reads."""
    write_manifest(folder)
    mode = (folder / MANIFEST).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(mode)
    sync_directory(folder)


def _put_in_place(beside: Path, path: Path) -> None:
    """Put a finished folder at `path`; the one that was there is then at `beside`, or gone."""
    if path.exists() and not _exchange(beside, path):
        old = previous(path)
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(beside, path)
    elif not path.exists():
        os.replace(beside, path)
    sync_directory(path.parent)
    shutil.rmtree(previous(path), ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    return rename is not None and rename(os.fsencode(one), os.fsencode(other)) == 0


@functools.cache
def _renameat2() -> Callable[[bytes, bytes], int] | None:
    """renameat2 with RENAME_EXCHANGE of the C library; None where there is none."""
    if sys.platform != "linux":
        return None
    import ctypes

    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is None:
        return None
    return lambda one, other: int(function(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recover(path: Path) -> bool:
    """Bring the old version of a folder back whose replacement was cut short; True if it was."""
    if path.exists() or not previous(path).is_dir():
        return False
    previous(path).rename(path)
    return True


def remove_leftovers(folder: Path, *, alone: bool) -> list[Path]:
    """Remove what killed writers left in `folder`, and bring back what they had moved aside; the paths removed.

    Args:
        alone: nobody but this process writes into `folder`; else what may be somebody's stays.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = _TEMPORARY.match(path.name.removesuffix(".lock"))
        if found is not None:
            temporary = path.with_name(path.name.removesuffix(".lock"))
            if _remove_if_left(temporary, alone=alone):
                removed.append(temporary)
        elif alone and path.match(".*.old") and path.is_dir() and not recover(path.with_name(path.stem[1:])):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _remove_if_left(temporary: Path, *, alone: bool = False) -> bool:
    """Remove a temporary file or folder unless its writer lives; True if it was there and is gone."""
    lock = _lock_of(temporary)
    if lock.exists():
        if is_locked(lock):
            return False
    elif not alone and not _is_old(temporary):
        return False
    was_there = temporary.exists()
    _remove(temporary)
    lock.unlink(missing_ok=True)
    return was_there


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > LEFT_SECONDS
    except FileNotFoundError:
        return False


def size(count: int) -> str:
    """Bytes in words: 3.1 MB."""
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
