"""Manifests: the SHA-256 of every file of a folder, and the damage that they show.

manifest.json maps the name of each file (relative, with /) to the SHA-256 of the file in hex; of a file of more than
one block, to the list of those of its blocks in turn, so that damage has a place. A folder without a manifest is
somebody else's and is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mmcli.errors import UserError

MANIFEST = "manifest.json"
BLOCK = 2**20  # bytes of a file that have a digest of their own
READERS = min(4, os.cpu_count() or 1)  # threads that hash one file
SHARE = 8  # blocks that a further thread is worth
SHOWN = 3  # names of tensors and byte ranges in a message before "and N more"
SETTLED_SECONDS = 2.0  # a file changed later than this ago may change again without another time of change

Digests = str | list[str]
T = TypeVar("T")

_whole: dict[Path, tuple[Any, Digests]] = {}  # files that this process found whole: (os.stat then, their digests)
_lock = threading.Lock()


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written."""

    path: Path
    problem: str  # what is wrong, to be read after the path

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class _DamagedManifestError(Exception):
    """Says what is wrong with the manifest itself, to be read after its path."""


def write_manifest(folder: Path) -> None:
    """Flush every file of a folder to the disk and write the digests of them into its manifest."""
    found: dict[str, Digests] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found[path.relative_to(folder).as_posix()] = file_digests(path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    with open(folder / MANIFEST, "wb") as file:
        file.write(_text(found))
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path, *, needed: Iterable[str] = ()) -> Damage | None:
    """The first damage of a folder that was written with a manifest, or None if it is whole (see `damages`)."""
    return next(damages(folder, needed=needed), None)


def damages(folder: Path, *, needed: Iterable[str] = ()) -> Iterator[Damage]:
    """Every damaged or missing file of a folder that was written with a manifest, the manifest included.

    Args:
        needed: files that the manifest must name.
    """
    try:
        manifest = _read(folder)
    except _DamagedManifestError as error:
        yield Damage(folder / MANIFEST, str(error))
        return
    if manifest is None:
        yield Damage(folder / MANIFEST, "is missing")
        return
    if not manifest:
        yield Damage(folder / MANIFEST, "names no file")
        return
    for name in needed:
        if name not in manifest:
            yield Damage(folder / MANIFEST, f"does not name {name}")
    for name, digests in manifest.items():
        if (found := _file_damage(folder / name, digests)) is not None:
            yield found


def refuse_damaged(folder: Path, names: Iterable[str] | None = None, *, remake: str = "") -> None:
    """Check files of a folder before they are read, each once in a process; nothing where there is no manifest.

    Args:
        names: the files that are about to be read, there or not; None: all that the manifest names.
        remake: how the folder is made again, for the message: a command.

    Raises:
        UserError: one is damaged or missing, or the manifest leaves it out.
    """
    found = _first_damage(folder, names)
    if found is not None:
        again = f"make it again ({remake})" if remake else "make it again"
        fix = f"restore it from a copy, or {again}; if it was changed on purpose, delete {folder / MANIFEST}"
        raise UserError(str(found), fix)


def _first_damage(folder: Path, names: Iterable[str] | None) -> Damage | None:
    try:
        manifest = _read(folder)
    except _DamagedManifestError as error:
        return Damage(folder / MANIFEST, str(error))
    if manifest is None:
        return None
    for name in manifest if names is None else names:
        if name in manifest:
            if (found := _file_damage(folder / name, manifest[name])) is not None:
                return found
        elif (folder / name).exists():
            return Damage(folder / MANIFEST, f"does not name {name}")
    return None


def has_manifest(folder: Path) -> bool:
    """True if a folder was written with a manifest, be it damaged."""
    try:
        return _read(folder) is not None
    except _DamagedManifestError:
        return True


def _text(manifest: Mapping[str, Digests]) -> bytes:
    return (json.dumps(manifest, ensure_ascii=False, indent=2) + "\n").encode()


def _read(folder: Path) -> dict[str, Digests] | None:
    """The manifest of a folder; None if it has none, or a file of another program has that name.

    Raises:
        _DamagedManifestError: it is not as it was written.
    """
    try:
        stored = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _DamagedManifestError(f"cannot be read: {error.strerror}") from None
    try:
        manifest = json.loads(stored)
    except (ValueError, RecursionError):
        raise _DamagedManifestError("is damaged: it is not JSON") from None
    if not isinstance(manifest, dict) or (manifest and not any(map(_resemble_digests, manifest.values()))):
        return None
    if _text(manifest) != stored or not all(map(_are_digests, manifest.values())):
        raise _DamagedManifestError("is damaged")
    for name in manifest:
        if ".." in PurePosixPath(name).parts or Path(name).is_absolute() or "\\" in name:
            raise _DamagedManifestError(f"names {name!r}, which is outside its folder")
    return manifest


def _are_digests(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(isinstance(digest, str) and len(digest) == 64 for digest in each)


def _resemble_digests(value: Any) -> bool:
    """True of digests, be they damaged."""
    each = value if isinstance(value, list) else [value]
    return any(isinstance(digest, str) and len(digest) > 32 for digest in each)


def file_digests(path: Path) -> Digests:
    """The SHA-256 (hex) of a file, or those of its blocks if it has more than one."""
    digests = of_blocks(path, lambda block: hashlib.sha256(block).hexdigest())
    return digests if len(digests) > 1 else digests[0] if digests else hashlib.sha256().hexdigest()


def of_blocks(path: Path, function: Callable[[memoryview], T]) -> list[T]:
    """`function` of each block of a file in turn, over a few threads."""
    blocks = math.ceil(path.stat().st_size / BLOCK)
    share = max(SHARE, math.ceil(blocks / READERS))
    if blocks <= share:
        return _of_blocks(path, 0, blocks, function)
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda first: _of_blocks(path, first, share, function), range(0, blocks, share))
        return [value for part in parts for value in part]


def _of_blocks(path: Path, first: int, count: int, function: Callable[[memoryview], T]) -> list[T]:
    """`function` of the blocks `first` to `first + count - 1`, fewer where the file ends."""
    values: list[T] = []
    buffer = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        file.seek(first * BLOCK)
        while len(values) < count and (size := _fill(file, buffer)):
            values.append(function(buffer[:size]))
    return values


def _fill(file: Any, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; the number of bytes read."""
    done = 0
    while done < len(buffer) and (size := file.readinto(buffer[done:])):
        done += size
    return done


def _file_damage(path: Path, digests: Digests) -> Damage | None:
    """What is wrong with a file; it is read only if this process has not found it whole as it is now."""
    try:
        before = os.stat(path)
        seen = (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        with _lock:
            if _whole.get(path.absolute()) == (seen, digests):
                return None
        found = _whole_digest(path) if isinstance(digests, str) else file_digests(path)
    except FileNotFoundError:
        return Damage(path, "is missing")
    except OSError as error:
        return Damage(path, f"cannot be read: {error.strerror}")
    if found != digests:
        return Damage(path, f"is damaged: {_place(path, before.st_size, found, digests)}")
    if time.time() - max(before.st_mtime, before.st_ctime) > SETTLED_SECONDS:
        with _lock:
            _whole[path.absolute()] = (seen, digests)
    return None


def _whole_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(path: Path, size: int, found: Digests, digests: Digests) -> str:
    """Where a file differs, in words: bytes, and tensors of a safetensors file."""
    if isinstance(digests, str):
        return f"bytes 0 to {size - 1:,}" if size else "it is empty"
    now = found if isinstance(found, list) else [found]  # one block is all that is left
    wrong = [i for i, digest in enumerate(digests) if i >= len(now) or now[i] != digest]
    wrong += range(len(digests), len(now))
    place = describe_blocks(wrong, size)
    tensors = _tensors_in(path, wrong) if path.suffix == ".safetensors" else []
    return f"{place}, in {_some(tensors)}" if tensors else place


def describe_blocks(wrong: list[int], size: int) -> str:
    """The byte ranges of the blocks `wrong` (ascending) of a file that now has `size` bytes, in words."""
    ranges: list[list[int]] = []
    for i in wrong:
        if i * BLOCK >= size:
            break
        if ranges and ranges[-1][1] == i:
            ranges[-1][1] = i + 1
        else:
            ranges.append([i, i + 1])
    texts = [f"bytes {first * BLOCK:,} to {min(end * BLOCK, size) - 1:,}" for first, end in ranges]
    ended = [f"it ends after {size:,} bytes"] if wrong[-1] * BLOCK >= size else []
    return ", ".join([*([_some(texts)] if texts else []), *ended])


def _tensors_in(path: Path, wrong: list[int]) -> list[str]:
    """The tensors of a safetensors file that lie in damaged blocks; none where the damage is in its header."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 2**27 or any(i * BLOCK < 8 + length for i in wrong):
                return []
            header = json.loads(file.read(length))
    except (OSError, ValueError):
        return []
    header.pop("__metadata__", None)
    start = 8 + length
    found = []
    for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
        first, end = (start + offset for offset in entry["data_offsets"])
        if any(first < (i + 1) * BLOCK and i * BLOCK < end for i in wrong):
            found.append(name)
    return found


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
