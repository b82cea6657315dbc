"""Writing a token cache: beside its place, flushed to disk, then renamed, so that it is whole or absent.

Two processes that build the same cache each write their own folder; the first rename wins and the loser's folder is
dropped. A builder holds a lock on `building-*.lock`; folders whose lock is free belong to a process that died, and the
next builder removes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: what dead builders left stays until it is removed by hand
    fcntl = None  # type: ignore[assignment]  # a module that is not there

META = "meta.json"
TOKENS, TRAINED, OFFSETS, HASHES = "tokens.bin", "trained.bin", "offsets.bin", "hashes.bin"
REJECTED = "rejected.jsonl"
BUFFER = 2**20


class CacheWriter:
    """Appends sequences to the files of a cache folder."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], *, masked: bool) -> None:
        self._dtype = dtype
        names = [TOKENS, OFFSETS, HASHES, *([TRAINED] if masked else [])]
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {name: (folder / name).open("wb", buffering=BUFFER) for name in names}
        self._files[OFFSETS].write(np.int64(0).tobytes())
        self.sequences = 0
        self.tokens = 0

    def append(self, ids: Sequence[int], trained: Sequence[bool] | None) -> None:
        """Add one sequence; `trained` where and only where the cache is masked."""
        data = np.asarray(ids, dtype=self._dtype).tobytes()
        self.sequences += 1
        self.tokens += len(ids)
        self._files[TOKENS].write(data)
        self._files[OFFSETS].write(np.int64(self.tokens).tobytes())
        self._files[HASHES].write(hashlib.blake2b(data, digest_size=8).digest())
        if TRAINED in self._files:
            assert trained is not None and len(trained) == len(ids)
            self._files[TRAINED].write(np.asarray(trained, dtype=np.uint8).tobytes())

    def finish(self, meta: dict[str, Any]) -> None:
        """Flush everything to the disk, the description of the cache last."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        self.close()
        with (self._folder / META).open("w", encoding="utf-8") as description:
            json.dump({**meta, "sizes": sizes}, description, indent=1)
            description.flush()
            os.fsync(description.fileno())

    def close(self) -> None:
        """Close the files; a cache that is not finished stays unusable."""
        for file in self._files.values():
            file.close()


@contextmanager
def building(cache_dir: Path) -> Iterator[Path]:
    """A new folder to build in, removed at the end unless it was published (renamed)."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    _sweep(cache_dir)
    name = f"building-{os.getpid()}-{secrets.token_hex(4)}"
    lock, folder = cache_dir / f"{name}.lock", cache_dir / name
    with lock.open("w") as held:
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
            with lock.open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


def publish(folder: Path, place: Path) -> bool:
    """Rename a finished folder to its place; False if another process was first."""
    _sync(folder)
    try:
        folder.rename(place)
    except OSError:
        if place.is_dir():
            return False
        raise
    _sync(place.parent)
    return True


def _sync(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
