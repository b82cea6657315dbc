"""How many rows each shard of a large cache has, kept beside the cache: only packing a shard tells that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmcli.files import write_json

PACKING = 1  # version of the rules by which rows are made; part of the name of what is kept


@dataclass(frozen=True)
class ShardCounts:
    """What packing a shard told.

    Attributes:
        rows: of each source one after the other, or one number where a row may have several sources.
        source_tokens: tokens of each source of the cache that are trained on.
        tokens, dropped, truncated, truncated_tokens: as of `RowSet`.
    """

    rows: tuple[int, ...]
    source_tokens: tuple[int, ...]
    tokens: int
    dropped: int
    truncated: int
    truncated_tokens: int


def count_shards(
    folder: Path, rules: Any, shards: int, count: Callable[[int], ShardCounts], progress: Callable[[int], None]
) -> tuple[list[ShardCounts], Path]:
    """(the counts of every shard, the file in `folder` that keeps them); those that it has are not counted again.

    The file is written after each shard, so that a start that is interrupted goes on where it was. One that is damaged
    counts as none, and a folder that cannot be written keeps nothing.

    Args:
        rules: JSON values of all that decides which rows a shard has, besides the cache.
        count: the counts of a shard, by its number.
        progress: is called with the number of shards that are counted, if any has to be.
    """
    digest = hashlib.sha256(json.dumps([PACKING, shards, rules]).encode()).hexdigest()
    path = folder / f"rows-{digest[:16]}.json"
    found = _read(path)
    for shard in range(len(found), shards):
        found.append(count(shard))
        with contextlib.suppress(OSError):
            values = [asdict(each) for each in found]
            write_json(path, {"shards": values, "checksum": _checksum(values)})
        progress(shard + 1)
    return found, path


def _read(path: Path) -> list[ShardCounts]:
    try:
        kept = json.loads(path.read_bytes())
        values = kept["shards"]
        if kept["checksum"] != _checksum(values):
            return []
        lists = ("rows", "source_tokens")
        return [ShardCounts(**{**each, **{name: tuple(each[name]) for name in lists}}) for each in values]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _checksum(values: Sequence[Any]) -> int:
    return zlib.crc32(json.dumps(values).encode())
