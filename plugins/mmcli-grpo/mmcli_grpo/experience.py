"""Replies with their advantages, kept for the steps that train on them: in memory, and in the run for a resumed one.

Shapes: N replies, B of them in a micro-batch, T tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from mmcli.api import Batch, ModelConfig, Run, TokenBatch
from mmcli_grpo.loss import NO_LABEL, Objective, ReplyBatch, ReplyRows

PADDING = -1
# Of a prompt with several replies: attention has a mask there, whose cost grows with the square. Longer replies have a
# row of their own.
ROW_TOKENS = 512


@dataclass
class Row:
    """Replies to one prompt that are read in one row.

    Attributes:
        shared: tokens of the prompt without its last.
        replies: their numbers.
        length: tokens of the row.
    """

    shared: int
    replies: list[int]
    length: int


@dataclass(frozen=True)
class Experience:
    """The replies that one step wrote and one or more train on.

    Attributes:
        step: before which they were written.
        ids, written: of each reply its tokens (prompt first), and which of them the model wrote.
        advantages: of each reply.
        told: sums and counts of what is told of all replies, those that are not trained on included.
        old, reference: of each reply [T - 1] log-probabilities, of the weights that wrote it and of the reference.
    """

    step: int
    ids: Sequence[np.ndarray]
    written: Sequence[np.ndarray]
    advantages: np.ndarray
    told: Mapping[str, tuple[float, float]]
    old: Sequence[np.ndarray] = field(default=())
    reference: Sequence[np.ndarray] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self, tokens: int, *, least: int = 1) -> list[list[Row]]:
        """The replies in micro-batches of rows of like length: padding included, as many `tokens` as one may have.

        Args:
            least: micro-batches, where there are as many replies: each rank needs one.
        """
        width = min(tokens, ROW_TOKENS)
        parts: list[list[Row]] = []
        for row in sorted(self._rows(width, range(len(self))), key=lambda row: (row.length, row.replies)):
            if parts and (len(parts[-1]) + 1) * row.length <= tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
        while len(parts) < min(least, len(self)):
            parts.sort(key=lambda part: len(_replies(part)))
            replies = _replies(parts.pop())
            half = len(replies) // 2
            parts += [self._rows(width, each) for each in (replies[:half], replies[half:])]
        return parts

    def _rows(self, width: int, replies: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        newest: dict[bytes, Row] = {}
        for n in replies:
            ids, is_written = self.ids[n], self.written[n]
            shared = int(is_written.argmax()) - 1
            prompt, own = ids[: shared + 1].tobytes(), len(ids) - 1 - shared
            row = newest.get(prompt)
            if row is None or row.length + own > width:
                row = newest[prompt] = Row(shared, [], shared)
                rows.append(row)
            row.replies.append(n)
            row.length += own
        return rows

    def layout(self, rows: Sequence[Row], config: ModelConfig, pad_id: int, *, pin: bool) -> ReplyRows:
        """Replies as the model reads them: a prompt once, then all replies to it, in rows padded alike.

        A reply begins with the last token of its prompt, after which its first token is drawn.
        """
        replies = _replies(rows)
        shape = (len(rows), max(row.length for row in rows))
        ids_BT, labels_BT = np.full(shape, pad_id, dtype=np.int64), np.full(shape, NO_LABEL, dtype=np.int64)
        positions_BT, segments_BT = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
        branches_BT = np.zeros(shape, dtype=np.int64)
        width = max(len(self.ids[n]) for n in replies) - 1
        places: list[np.ndarray] = []
        for b, row in enumerate(rows):
            shared = row.shared
            segments_BT[b, : row.length] = 0
            ids_BT[b, :shared] = self.ids[row.replies[0]][:shared]
            positions_BT[b, :shared] = np.arange(shared)
            at = shared
            for branch, n in enumerate(row.replies, 1):
                ids, end = self.ids[n], at + len(self.ids[n]) - 1 - shared
                is_written = self.written[n][shared + 1 :]
                ids_BT[b, at:end] = ids[shared:-1]
                labels_BT[b, at:end] = np.where(is_written, ids[shared + 1 :], NO_LABEL)
                positions_BT[b, at:end] = np.arange(shared, len(ids) - 1)
                branches_BT[b, at:end] = branch
                places.append(len(places) * width + shared + np.flatnonzero(is_written))
                at = end
        branches = branches_BT if any(len(row.replies) > 1 for row in rows) else None
        batch = Batch(ids_BT, labels_BT, positions_BT, segments_BT)
        made = TokenBatch.from_batch(batch, config, pin=pin, branches_BT=branches)
        label_N, place_N = np.flatnonzero(labels_BT != NO_LABEL), np.concatenate(places)
        return ReplyRows(made, torch.from_numpy(label_N), torch.from_numpy(place_N), (len(replies), width))

    def batch(
        self,
        part: Sequence[Row],
        config: ModelConfig,
        pad_id: int,
        objective: Objective,
        *,
        tells: bool,
        pin: bool,
    ) -> ReplyBatch:
        """The micro-batch of the rows `part`; one of a step `tells` of all its replies."""
        rows, replies = self.layout(part, config, pad_id, pin=pin), _replies(part)
        count = rows.rows.counts["loss"] if objective.average == "token" else float(len(replies))
        counts = {"policy_loss": count} | ({"kl": count} if len(self.reference) else {})
        if "balance" in rows.rows.counts:
            counts["balance"] = rows.rows.counts["balance"]
        old, reference = (_padded(each, replies, rows.shape[1]) for each in (self.old, self.reference))
        chosen = torch.from_numpy(self.advantages[replies])
        return ReplyBatch(rows, chosen, old, reference, counts, self.told if tells else {})

    def with_logps(
        self, logps: Callable[[ReplyRows], Tensor], parts: Sequence[Sequence[Row]], config: ModelConfig, pad_id: int
    ) -> list[np.ndarray]:
        """Of each reply the [T - 1] log-probabilities that `logps` gives, in the micro-batches `parts`."""
        found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(self)
        for part in parts:
            logps_BT = logps(self.layout(part, config, pad_id, pin=False)).float().cpu().numpy()
            for b, n in enumerate(_replies(part)):
                found[n] = logps_BT[b, : len(self.ids[n]) - 1].copy()
        return found

    # In the run, where several steps train on the same replies

    def save(self, folder: Path) -> None:
        """Write it as `step-000012.safetensors`, whole or not at all."""
        folder.mkdir(exist_ok=True)
        arrays: dict[str, np.ndarray] = {
            "ids": np.concatenate(self.ids).astype(np.int64),
            "written": np.concatenate(self.written).astype(np.uint8),
            "lengths": np.array([len(each) for each in self.ids], dtype=np.int64),
            "advantages": self.advantages,
        }
        for name in ("old", "reference"):
            if len(getattr(self, name)):
                arrays[name] = np.concatenate(getattr(self, name))
        path = path_of(folder, self.step)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(arrays, beside, metadata={"told": json.dumps(self.told)})
        os.replace(beside, path)

    @classmethod
    def load(cls, folder: Path, step: int) -> Experience | None:
        """What was saved before `step`; None where that is not there or damaged."""
        try:
            with safe_open(path_of(folder, step), framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
                told = {name: (pair[0], pair[1]) for name, pair in json.loads(file.metadata()["told"]).items()}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        lengths = arrays["lengths"]
        ends, short_ends = np.cumsum(lengths)[:-1], np.cumsum(lengths - 1)[:-1]
        ids, written = np.split(arrays["ids"], ends), np.split(arrays["written"].astype(bool), ends)
        logps = {name: np.split(arrays[name], short_ends) for name in ("old", "reference") if name in arrays}
        return cls(step, ids, written, arrays["advantages"], told, **logps)


def path_of(folder: Path, step: int) -> Path:
    """Where the replies written before `step` are kept."""
    return folder / f"step-{step:06d}.safetensors"


def remove_old(folder: Path, run: Run, updates: int) -> None:
    """Remove what no checkpoint of the run needs any more."""
    steps = [int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*") if path.is_dir()]
    oldest = min(steps, default=0)
    for path in folder.glob("step-*.safetensors"):
        if int(path.stem.removeprefix("step-")) + updates <= oldest:
            path.unlink(missing_ok=True)


def _replies(rows: Sequence[Row]) -> list[int]:
    return [n for row in rows for n in row.replies]


def _padded(values: Sequence[np.ndarray], part: Sequence[int], width: int) -> Tensor | None:
    """[B, width] of the values of some replies; None where there are none."""
    if not len(values):
        return None
    padded_BT = np.zeros((len(part), width), dtype=np.float32)
    for b, n in enumerate(part):
        padded_BT[b, : len(values[n])] = values[n]
    return torch.from_numpy(padded_BT)
