"""Stages that learn from preference pairs: data -> pairs -> the reference's log-probabilities -> a task for the loop.

The reference's log-probabilities are computed once, before the first step, and kept in the run folder: no second
model stays in memory, and a resumed run reads them back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batches
from mmcli.data.pack.packing import Rows
from mmcli.data.pack.pairs import PairFit, fit_pairs, make_pair_batch, pair_lengths, pair_rows
from mmcli.data.sources.sources import OpenedData
from mmcli.errors import UserError
from mmcli.files import atomic_folder
from mmcli.inputs import Input, read_inputs
from mmcli.manifest import damage
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model
from mmcli.stage import LossOutput, Metric, Reporter, StageContext
from mmcli.stages.start import (
    MicroBatch,
    Start,
    choose_micro_batch,
    find_reference,
    pin_model,
    save_adapter,
    save_into,
    tell_change,
)
from mmcli.stages.tokens import name_records, open_split
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.adapters import training_flops
from mmcli.train.config import TrainConfig
from mmcli.train.preference import PairBatch, sequence_logps
from mmcli.train.task import MicroBatches, Task

REFERENCE, LOGPS = "reference", "logps.safetensors"  # a folder of the run, and the table in it


@dataclass(frozen=True)
class Pairs:
    """Preference pairs of one part of the data, with the reference's log-probabilities of them.

    A pair always meets the model in a micro-batch of pairs of like length, at most `micro_batch.size` of them.
    """

    cache: TokenCache
    rows: Rows
    reference_N2: np.ndarray  # float32 log-probabilities of chosen and rejected; 0 until they are computed
    config: ModelConfig
    micro_batch: MicroBatch
    pin: bool  # batches are put into page-locked memory
    term: str  # the term of the loss that is averaged over pairs

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, which: np.ndarray) -> list[np.ndarray]:
        """The numbers of the pairs `which`, cut into micro-batches."""
        which = which[np.argsort(pair_lengths(self.rows)[which], kind="stable")]
        size = self.micro_batch.size
        return [which[first : first + size] for first in range(0, len(which), size)]

    def batch(self, part: np.ndarray) -> PairBatch:
        """The micro-batch of the pairs `part`, on the host."""
        rows = make_pair_batch(self.cache, self.rows, part)
        return PairBatch.from_batch(rows, self.reference_N2[part], self.config, self.term, pin=self.pin)

    def batches(self, which: np.ndarray) -> Iterator[PairBatch]:
        """The micro-batches of the pairs `which`, on the host."""
        return (self.batch(part) for part in self.parts(which))


@dataclass(frozen=True)
class PairData:
    """The pairs of a run."""

    training: Pairs
    held_out: Pairs | None  # None: there is too little data to hold anything out
    steps: Batches  # which training pairs each step has


def open_pairs(
    data: OpenedData,
    train: TrainConfig,
    start: Start,
    context: StageContext,
    *,
    term: str = "loss",
    whole: bool = False,
) -> PairData:
    """The pairs to train on, and those held out.

    Args:
        term: the name of the loss, which is averaged over pairs.
        whole: leave out pairs that do not fit with their last token, rather than cut them.

    Raises:
        UserError: the data cannot be used, or no pair fits.
    """
    seq_len = data.config.seq_len
    fits: list[PairFit] = []

    def usable(cache: TokenCache) -> np.ndarray:
        fits.append(fit_pairs(cache, seq_len, whole=whole))
        return fits[-1].usable_N

    cache, kept, val_cache, held = open_split(data, train.seed, start.tokenizer, context, usable=usable)
    fit = fits[0] if fits else fit_pairs(cache, seq_len, whole=whole)
    rows = pair_rows(cache, kept, seq_len, fit)
    equal = int(fit.equal_N[np.asarray(kept.documents)[::2] // 2].sum())
    val_fit = fit if val_cache is cache else fit_pairs(val_cache, seq_len, whole=whole)
    val = pair_rows(val_cache, held, seq_len, val_fit) if len(held) else None
    line = f"{len(rows):,} pairs"
    if rows.truncated:
        line += f", {rows.truncated:,} cut at {seq_len} tokens ({rows.truncated_tokens:,} tokens lost)"
    if rows.dropped > equal:
        line += f", {rows.dropped - equal:,} too long and left out"
    if equal:
        line += f", {equal:,} with the same chosen and rejected tokens once cut, left out"
    context.report.note(line + (f"; held out: {len(val):,}" if val else ""))
    micro_batch = choose_micro_batch(train, start.model.config, 2 * seq_len, start.accelerator, context)

    def pairs(cache: TokenCache, rows: Rows) -> Pairs:
        reference_N2 = np.zeros((len(rows), 2), dtype=np.float32)
        return Pairs(cache, rows, reference_N2, start.model.config, micro_batch, start.accelerator.pins_memory, term)

    steps = Batches(cache, rows, batch_size=train.batch_size, micro_batch=micro_batch.size, seed=train.seed)
    return PairData(pairs(cache, rows), pairs(val_cache, val) if val is not None else None, steps)


def fill_reference(
    data: PairData,
    reference: str | None,
    train: TrainConfig,
    start: Start,
    context: StageContext,
) -> None:
    """Fill the reference's log-probabilities: from the run folder, or by one pass of the reference model.

    Args:
        reference: the model that a person named; None: the one that the training starts from.

    Raises:
        UserError: the reference cannot be found, or has another tokenizer.
    """
    folder, accelerator = context.run.path / REFERENCE, start.accelerator
    parts = {"training": data.training} | ({"held_out": data.held_out} if data.held_out is not None else {})
    named = find_reference(reference, context) if reference is not None else None
    key = _reference_key(data, train, read_inputs(context.run).get("parent" if named is None else "reference"))
    if _load_reference(folder, key, parts, context.report):
        if named is not None:
            tell_change("reference", named, context)
        return
    model = start.model
    if named is not None or not start.initial:
        other, name = (named, "reference") if named is not None else (start.parent, "parent")
        assert other is not None
        pin_model(name, other, context)
        model = load_model(other.path, device=accelerator.device)
    if named is not None and Tokenizer.load(named.path).fingerprint != start.tokenizer.fingerprint:
        raise UserError(
            f"--reference {reference} has another tokenizer than the model",
            "give one with the same tokenizer",
        )
    steps = _reference_steps(data, train)
    if context.trial is not None:
        steps = min(steps, context.trial.steps + 1)
    chosen = [(data.training, data.steps.row_numbers(step)) for step in range(steps)]
    if data.held_out is not None and context.trial is None:
        chosen.append((data.held_out, np.arange(len(data.held_out))))
    done, total = 0, sum(len(which) for _, which in chosen)
    adapter = start.adapter
    with adapter.reference(start.model) if adapter is not None else contextlib.nullcontext(), torch.no_grad():
        model.eval()
        for pairs, which in chosen:
            for part in pairs.parts(which):
                with accelerator.autocast():
                    logps_P2, _ = sequence_logps(model, pairs.batch(part).to(accelerator.device))
                pairs.reference_N2[part] = logps_P2.float().cpu().numpy()
            done += len(which)
            context.report.progress("reference", done, total, "pairs")
    with atomic_folder(folder) as beside:
        tables = {name: pairs.reference_N2 for name, pairs in parts.items()}
        save_file(tables, beside / LOGPS, metadata={"key": key})


def _reference_key(data: PairData, train: TrainConfig, model: Input | None) -> str:
    """What the reference's log-probabilities come from: pairs, which of them are trained on, and the weights."""
    digest = hashlib.sha256()
    for pairs in (data.training, data.held_out):
        if pairs is not None:
            digest.update(pairs.cache.key.encode())
            for array in (pairs.rows.piece_doc, pairs.rows.piece_start, pairs.rows.piece_len):
                digest.update(np.ascontiguousarray(array).data)
    order = (_reference_steps(data, train), train.batch_size, train.seed, data.training.rows.seq_len)
    digest.update(f"{order} {model.key if model is not None else None}".encode())
    return digest.hexdigest()


def _load_reference(folder: Path, key: str, parts: Mapping[str, Pairs], report: Reporter) -> bool:
    """Fill the log-probabilities from the run folder; False where they are not there, damaged, or of something else."""
    if not folder.is_dir():
        return False
    if (problem := damage(folder, needed=[LOGPS])) is not None:
        report.warn(f"{problem}: the reference's log-probabilities are computed again")
        return False
    with safe_open(folder / LOGPS, framework="numpy") as file:
        if (file.metadata() or {}).get("key") != key:
            what = f"{folder / LOGPS} is of other pairs or weights"
            report.warn(f"{what}: the reference's log-probabilities are computed again")
            return False
        for name, pairs in parts.items():
            pairs.reference_N2[:] = file.get_tensor(name)
    return True


def _reference_steps(data: PairData, train: TrainConfig) -> int:
    """Steps whose pairs need a reference: all of an epoch, or as many as are trained if these are fewer."""
    epoch, wanted = int(np.ceil(data.steps.steps_per_epoch)), train.steps
    return epoch if wanted is None or train.budget is not None else min(epoch, wanted)


def pair_task(
    data: PairData,
    loss: Callable[[Any, PairBatch], LossOutput],
    start: Start,
    context: StageContext,
    *,
    metrics: Sequence[Metric],
) -> Task:
    """The task of learning from pairs.

    Args:
        loss: of a micro-batch; its metrics are sums over pairs.
        metrics: what is shown, the first being the headline of the run. Those of training are measured on the held-out
            pairs too, with `val_` before their names.
    """
    model, accelerator, held_out = start.model, start.accelerator, data.held_out
    measured = {metric.name for metric in metrics if not metric.held_out}

    def evaluate(model: Any) -> dict[str, float]:
        assert held_out is not None
        sums: dict[str, float] = {}
        for batch in held_out.batches(np.arange(len(held_out))):
            out = loss(model, batch.to(accelerator.device))
            for name, term in {held_out.term: out.terms[held_out.term], **out.metrics}.items():
                if name in measured:
                    sums[name] = sums.get(name, 0.0) + float(term.sum)
        return {f"val_{name}": total / len(held_out) for name, total in sums.items()}

    def describe(step: int, where: Sequence[int]) -> str:
        parts = data.training.parts(data.steps.row_numbers(step))
        return name_records(data.training.cache, data.training.rows, np.concatenate([parts[i] for i in where]))

    return Task(
        model=model,
        accelerator=accelerator,
        batches=lambda step: MicroBatches(data.training.parts(data.steps.row_numbers(step)), data.training.batch),
        loss=loss,
        steps_per_epoch=data.steps.steps_per_epoch,
        flops_per_token=training_flops(model, data.training.rows.seq_len),
        save_model=lambda folder: save_into(folder, start, context),
        save_adapter=lambda: save_adapter(start, context),
        metrics=tuple(metrics),
        evaluate=evaluate if held_out is not None else None,
        evaluation_tokens=held_out.rows.tokens if held_out is not None else 0,
        halve=data.training.micro_batch.halve,
        describe=describe,
    )
