"""The folder of a token cache: where it is built, how it is sealed with checksums, and checked.

A cache is written beside its place, flushed to disk, then renamed, so that it is whole or absent. Two processes that
build the same one each write their own folder; the first rename wins and the loser's folder is dropped. A builder
holds a lock on `building-*.lock`; folders whose lock is free belong to a process that died, and the next builder
removes them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcli.files import sync_directory
from mmcli.manifest import describe_blocks, of_blocks

try:
    import fcntl
except ImportError:  # Windows: what dead builders left stays until it is removed by hand
    fcntl = None  # type: ignore[assignment]  # a module that is not there

META = "meta.json"


class DamagedCacheError(Exception):
    """A cache folder whose files are not as they were written: names the file and where it differs."""


def _meta_text(meta: Mapping[str, Any]) -> bytes:
    """meta.json, which ends with a checksum of all before it."""
    own = zlib.crc32(json.dumps(meta).encode())
    return (json.dumps({**meta, "checksum": own}, indent=1) + "\n").encode()


def read_meta(folder: Path) -> dict[str, Any]:
    """The description of a cache folder.

    Raises:
        DamagedCacheError: it is missing, or differs from what was written.
    """
    path = folder / META
    try:
        stored = path.read_bytes()
        meta = json.loads(stored)
        meta.pop("checksum")
        whole = _meta_text(meta) == stored
    except FileNotFoundError:
        raise DamagedCacheError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedCacheError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedCacheError(f"{path} is damaged")
    return dict(meta)


def check_files(folder: Path, meta: Mapping[str, Any]) -> None:
    """Compare every file of a cache folder with the checksums that `meta` has.

    Raises:
        DamagedCacheError: a file is missing, or differs from what was written.
    """
    for name, checksums in meta["checksums"].items():
        _check_file(folder / name, meta["sizes"][name], checksums)


def _check_file(path: Path, size: int, checksums: list[int]) -> None:
    try:
        now = path.stat().st_size
        found = of_blocks(path, zlib.crc32)
    except FileNotFoundError:
        raise DamagedCacheError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedCacheError(f"{path} cannot be read: {error.strerror}") from None
    if now != size:
        raise DamagedCacheError(f"{path} has {now:,} bytes instead of {size:,}")
    wrong = [i for i, pair in enumerate(zip(found, checksums, strict=True)) if pair[0] != pair[1]]
    if wrong:
        raise DamagedCacheError(f"{path} is damaged: {describe_blocks(wrong, size)}")


def seal(folder: Path, names: Sequence[str], meta: dict[str, Any]) -> None:
    """Write the description of a cache folder, with the size and the checksums of those of its files that are there."""
    paths = [path for name in names if (path := folder / name).exists()]
    meta["sizes"] = {path.name: path.stat().st_size for path in paths}
    meta["checksums"] = {path.name: of_blocks(path, zlib.crc32) for path in paths}
    with (folder / META).open("wb") as description:
        description.write(_meta_text(meta))
        description.flush()
        os.fsync(description.fileno())


@contextmanager
def building(cache_dir: Path) -> Iterator[Path]:
    """A new folder to build in, removed at the end unless it was published (renamed)."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    _sweep(cache_dir)
    name = f"building-{os.getpid()}-{secrets.token_hex(4)}"
    lock, folder = cache_dir / f"{name}.lock", cache_dir / name
    with lock.open("wb") as held:
        if fcntl is not None:
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _sweep(cache_dir: Path) -> None:
    """Remove what dead builders left: those whose lock can be taken."""
    if fcntl is None:
        return
    for lock in cache_dir.glob("building-*.lock"):
        try:
            with lock.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


def publish(folder: Path, place: Path) -> bool:
    """Rename a finished folder to its place; False if another process was first."""
    sync_directory(folder)
    try:
        folder.rename(place)
    except OSError:
        if place.is_dir():
            return False
        raise
    sync_directory(place.parent)
    return True
