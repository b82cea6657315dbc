"""What a teacher expects at every label, on disk: its K likeliest tokens, in shards that are memory-mapped.

A table lies in `RUNS/.cache/teacher/KEY/`. The key is made of the content of teacher and data, of the temperature, K
and the precision, and the name of a shard of what is packed into its rows; so several students share them, and no other
teacher meets them. A shard is whole or absent, and is compared with its checksums before it is used: what is damaged is
made again. A run that was stopped in between goes on with the first shard that is not there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mmcli.api import (
    Accelerator,
    Batches,
    ModelConfig,
    Reporter,
    TokenBatch,
    TokenRows,
    atomic_folder,
    damage,
    make_batch,
)
from mmcli_distill.loss import likeliest

FORMAT = 1
SHARD_ROWS = 256
TEACHER_TOKENS = {"cpu": 4096, "cuda": 65536}  # of one forward pass
CHUNK_TOKENS = 2048  # whose logits are in memory together
TOP, LOGPS, OFFSETS = "top.npy", "logps.npy", "offsets.npy"


@dataclass(frozen=True)
class TeacherTable:
    """The likeliest tokens of a teacher at the labels of packed rows.

    Attributes:
        folder: of this table.
        order_R: numbers of the rows in the order of the table, those first that a training meets first.
        shards: the folder of each `SHARD_ROWS` rows that a training meets.
        k, temperature: of `likeliest`.
    """

    folder: Path
    rows: TokenRows
    order_R: np.ndarray
    shards: tuple[Path, ...]
    k: int
    temperature: float
    _opened: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        folder: Path,
        rows: TokenRows,
        teacher: str,
        *,
        k: int,
        temperature: float,
        seed: int,
        needed: int,
        accelerator: Accelerator,
    ) -> TeacherTable:
        """The table of these rows, which may not be there yet.

        Args:
            folder: of all tables.
            teacher: a digest of its shape and weights.
            needed: rows that a training meets: the first ones of an epoch.
        """
        packed = rows.train
        facts = (FORMAT, teacher, rows.cache.key, packed.seq_len, k, temperature)
        key = hashlib.sha256(f"{facts} {accelerator.device.type} {accelerator.precision}".encode()).hexdigest()
        order_R = Batches(rows.cache, packed, batch_size=len(packed), micro_batch=1, seed=seed).row_numbers(0)
        order_R = order_R[: math.ceil(needed / SHARD_ROWS) * SHARD_ROWS]
        shards = []
        for number, first in enumerate(range(0, len(order_R), SHARD_ROWS)):
            pieces = [packed.pieces(int(row)) for row in order_R[first : first + SHARD_ROWS]]
            shards.append(folder / key[:32] / f"{number:05d}-{hashlib.sha256(repr(pieces).encode()).hexdigest()[:16]}")
        return cls(folder / key[:32], rows, order_R, tuple(shards), k, temperature)

    def missing(self, report: Reporter) -> list[int]:
        """The shards that a training needs and that are not there; of a damaged one it is said."""
        found = []
        for number, shard in enumerate(self.shards):
            if not shard.is_dir():
                found.append(number)
            elif (problem := damage(shard, needed=(TOP, LOGPS, OFFSETS))) is not None:
                report.warn(f"{problem}: the teacher's likeliest tokens are computed again")
                found.append(number)
        return found

    def fill(self, missing: list[int], teacher: Any, accelerator: Accelerator, report: Reporter) -> None:
        """Let the teacher read the rows of `missing` shards."""
        for done, number in enumerate(missing, 1):
            which = self.order_R[number * SHARD_ROWS : (number + 1) * SHARD_ROWS]
            with torch.no_grad():
                parts = list(self._read(which, teacher, accelerator))
            counts = np.concatenate([counts for counts, _, _ in parts])
            with atomic_folder(self.shards[number]) as beside:
                np.save(beside / OFFSETS, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
                np.save(beside / TOP, np.concatenate([top_NK for _, top_NK, _ in parts]))
                np.save(beside / LOGPS, np.concatenate([logps_NK1 for _, _, logps_NK1 in parts]))
            report.progress("teacher", done, len(missing), "shards")

    def _read(
        self, which: np.ndarray, teacher: Any, accelerator: Accelerator
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(labels of each row, top_NK, logps_NK1) of some rows at a time, always cut alike."""
        config: ModelConfig = teacher.config
        dtype = np.uint16 if config.vocab_size <= 2**16 else np.int32
        size = max(1, TEACHER_TOKENS.get(accelerator.device.type, 4096) // self.rows.train.seq_len)
        for first in range(0, len(which), size):
            made = make_batch(self.rows.cache, self.rows.train, which[first : first + size])
            batch = TokenBatch.from_batch(made, config).to(accelerator.device)
            with accelerator.autocast():
                seen_BTD, _ = teacher(batch.ids_BT, batch.ctx)
                seen_ND = seen_BTD.flatten(0, 1)[(batch.labels_BT >= 0).flatten()]
                tops, logps = [], []
                for at in range(0, len(seen_ND), CHUNK_TOKENS):
                    part_ND = seen_ND[at : at + CHUNK_TOKENS]
                    expected_NV = F.linear(part_ND, teacher.head_weight, teacher.head_bias).float()
                    top_NK, logps_NK1 = likeliest(expected_NV, self.k, self.temperature)
                    tops.append(top_NK.cpu().numpy().astype(dtype))
                    logps.append(logps_NK1.float().cpu().numpy())
            counts = (made.labels_BT >= 0).sum(axis=1)
            empty = np.zeros((0, self.k), dtype), np.zeros((0, self.k + 1), np.float32)
            yield counts, np.concatenate([empty[0], *tops]), np.concatenate([empty[1], *logps])

    @cached_property
    def _places(self) -> dict[int, int]:
        """Where each row lies in the order."""
        return {row: place for place, row in enumerate(self.order_R.tolist())}

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offsets, top_NK, logps_NK1) of a shard, read where they are needed."""
        if number not in self._opened:
            files = (self.shards[number] / name for name in (OFFSETS, TOP, LOGPS))
            offsets, top_NK, logps_NK1 = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
            self._opened[number] = offsets, top_NK, logps_NK1
        return self._opened[number]

    def read(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(top_NK int64, logps_NK1 float32) at the labels of the rows `which`, in that order."""
        tops, logps = [], []
        for each in which.tolist():
            number, row = divmod(self._places[each], SHARD_ROWS)
            offsets, top_NK, logps_NK1 = self._open(number)
            part = slice(int(offsets[row]), int(offsets[row + 1]))
            tops.append(top_NK[part])
            logps.append(logps_NK1[part])
        return np.concatenate(tops).astype(np.int64), np.concatenate(logps)

    @property
    def bytes(self) -> int:
        """Of all its shards."""
        return sum(path.stat().st_size for shard in self.shards for path in shard.glob("*.npy"))
