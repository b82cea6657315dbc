"""What large files hold, without reading them again at every start: hashes kept while a file is untouched."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from mmcli.run import write_json

LARGE = 8 * 2**20  # bytes; what is smaller is read in no time
SETTLED_NS = 2_000_000_000  # a file that changed a moment ago may change again within the same tick of its clock


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FileHashes:
    """`hash_file`, with the hashes of large files kept in a JSON file.

    A kept hash counts while size, inode, and the times of the last change of content and of entry are all the same;
    the latter cannot be set by a program, so an edit never goes unseen. Windows has no such time and keeps nothing.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        self._kept: dict[str, list[object]] = kept if isinstance(kept, dict) else {}

    def __call__(self, path: Path) -> str:
        state = _state(path)
        name = str(path.resolve())
        known = self._kept.get(name)
        if state is not None and isinstance(known, list) and known[:-1] == state:
            return str(known[-1])
        found = hash_file(path)
        if state is not None and state == _state(path):
            self._kept[name] = [*state, found]
            self._place.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._place, self._kept)
        return found


def _state(path: Path) -> list[object] | None:
    """What tells one state of a large file from another; None where that cannot be told."""
    found = path.stat()
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    if os.name != "posix" or found.st_size < LARGE or time.time_ns() - newest < SETTLED_NS:
        return None
    return [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
