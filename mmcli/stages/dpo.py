"""Direct preference optimization: the better of two replies made likelier, held to a frozen reference.

The reference's log-probabilities are computed once, before the first step, and kept in the run folder: no second
model stays in memory, and a resumed run reads them back.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import nn

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batches
from mmcli.data.pack.packing import Rows
from mmcli.data.pack.pairs import make_pair_batch, pair_lengths, pair_rows
from mmcli.data.sources.sources import OpenedData, open_data
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.transformer import Transformer
from mmcli.run import find_model, write_atomic
from mmcli.stage import StageContext
from mmcli.stages import DpoConfig
from mmcli.stages.start import Start, choose_micro_batch, prepare_start, save_into
from mmcli.stages.tokens import open_split
from mmcli.text.tokenizer import Tokenizer
from mmcli.train.adapters import training_flops
from mmcli.train.device import Accelerator, choose_accelerator, make_deterministic
from mmcli.train.loop import Task, train
from mmcli.train.preference import PairBatch, preference_loss, sequence_logps

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Pairs:
    """Preference pairs of one part of the data, and the reference's log-probabilities of them."""

    cache: TokenCache
    rows: Rows
    reference_N2: np.ndarray  # float32, filled by `fill`

    @classmethod
    def of(cls, cache: TokenCache, rows: Rows) -> Pairs:
        return cls(cache, rows, np.zeros((len(rows), 2), dtype=np.float32))

    def micro_batches(self, which: np.ndarray, size: int, config: ModelConfig, device: torch.device) -> list[PairBatch]:
        """These pairs, `size` at once, pairs of like length together."""
        return [self._batch(part, config, device) for part in self.parts(which, size)]

    def parts(self, which: np.ndarray, size: int) -> list[np.ndarray]:
        """The numbers of these pairs in the micro-batches in which they are met."""
        which = which[np.argsort(pair_lengths(self.rows)[which], kind="stable")]
        return [which[first : first + size] for first in range(0, len(which), size)]

    def _batch(self, part: np.ndarray, config: ModelConfig, device: torch.device) -> PairBatch:
        rows = make_pair_batch(self.cache, self.rows, part)
        return PairBatch.from_batch(rows, torch.from_numpy(self.reference_N2[part]), config, device)

    @torch.no_grad()
    def fill(self, which: np.ndarray, size: int, model: Transformer, accelerator: Accelerator) -> None:
        """Compute the reference of these pairs with `model`, in the very micro-batches in which training meets them."""
        model.eval()
        for part in self.parts(which, size):
            with accelerator.autocast():
                logps_P2, _ = sequence_logps(model, self._batch(part, model.config, accelerator.device))
            self.reference_N2[part] = logps_P2.float().cpu().numpy()


def run(config: DpoConfig, context: StageContext) -> dict[str, Any]:
    """Train on preference pairs; the totals of the run."""
    make_deterministic()
    accelerator = choose_accelerator(config.train.device, config.train.precision)
    data = open_data("preference", config.data)  # refuse what is not there before anything is made
    start = prepare_start(None, data, config.train, context, accelerator.device)
    training, held_out = _open_pairs(data, config.train.seed, start.tokenizer, context)
    micro_batch = choose_micro_batch(config.train, start.model.config, 2 * config.data.seq_len, accelerator, context)
    batches = Batches(
        training.cache,
        training.rows,
        batch_size=config.train.batch_size,
        micro_batch=micro_batch,
        seed=config.train.seed,
    )
    work = _Work(config, start, training, held_out, batches, micro_batch, accelerator, context)
    work.prepare_reference()
    return train(work.task(), config.optim, config.train, context)


def _open_pairs(data: OpenedData, seed: int, tokenizer: Tokenizer, context: StageContext) -> tuple[Pairs, Pairs | None]:
    """The pairs to train on, and those held out."""
    cache, kept, val_cache, held = open_split(data, seed, tokenizer, context)
    seq_len = data.config.seq_len
    rows = pair_rows(cache, kept, seq_len)
    val = pair_rows(val_cache, held, seq_len) if len(held) else None
    line = f"{len(rows):,} pairs"
    if rows.truncated:
        line += f", {rows.truncated:,} cut at {seq_len} tokens ({rows.truncated_tokens:,} tokens lost)"
    if rows.dropped:
        line += f", {rows.dropped:,} too long and left out"
    context.report.note(line + (f"; held out: {len(val):,}" if val else ""))
    return Pairs.of(cache, rows), Pairs.of(val_cache, val) if val is not None else None


@dataclass(frozen=True)
class _Work:
    """What one training on pairs works with."""

    config: DpoConfig
    start: Start
    training: Pairs
    held_out: Pairs | None
    batches: Batches
    micro_batch: int
    accelerator: Accelerator
    context: StageContext

    def prepare_reference(self) -> None:
        """Fill the reference's log-probabilities: from the run folder, or by one pass of the reference model."""
        path = self.context.run.path / REFERENCE
        parts = {"training": self.training} | ({"held_out": self.held_out} if self.held_out is not None else {})
        if path.is_file():
            stored = load_file(path)
            for name, part in parts.items():
                part.reference_N2[:] = stored[name]
            return
        model = self.start.model
        if self.config.reference is not None:
            found = find_model(self.config.reference, self.context.run.path.parent)
            self.context.report.note(f"reference: {found.label}")
            model = load_model(found.path, device=self.accelerator.device)
            if Tokenizer.load(found.path).fingerprint != self.start.tokenizer.fingerprint:
                raise UserError(
                    f"--reference {self.config.reference} has another tokenizer than the model",
                    "give one with the same tokenizer",
                )
        wanted = self.config.train.steps
        steps = int(np.ceil(self.batches.steps_per_epoch))
        steps = steps if wanted is None or self.config.train.budget is not None else min(steps, wanted)
        total = steps * self.config.train.batch_size + (len(self.held_out.rows) if self.held_out is not None else 0)
        done = 0
        chosen = [(self.training, self.batches.row_numbers(step)) for step in range(steps)]
        if self.held_out is not None:
            chosen.append((self.held_out, np.arange(len(self.held_out.rows))))
        with (
            self.start.adapter.reference(self.start.model)
            if self.start.adapter is not None
            else contextlib.nullcontext()
        ):
            for part, which in chosen:
                part.fill(which, self.micro_batch, model, self.accelerator)
                done += len(which)
                self.context.report.progress("reference", done, total, "pairs")
        write_atomic(path, save({name: part.reference_N2 for name, part in parts.items()}))

    def task(self) -> Task:
        """The task of preferring the chosen replies."""
        shape, device = self.start.model.config, self.accelerator.device

        def step_batches(model: nn.Module, step: int) -> list[PairBatch]:
            return self.training.micro_batches(self.batches.row_numbers(step), self.micro_batch, shape, device)

        def loss(model: Any, batch: PairBatch) -> Any:
            return preference_loss(
                model, batch, shape, beta=self.config.beta, label_smoothing=self.config.label_smoothing
            )

        def evaluate(model: Any) -> dict[str, float]:
            assert self.held_out is not None
            sums: dict[str, float] = {}
            for batch in self.held_out.micro_batches(
                np.arange(len(self.held_out.rows)), self.micro_batch, shape, device
            ):
                out = loss(model, batch)
                for name, term in {"dpo_loss": out.terms["dpo_loss"], **out.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(term.sum)
            return {f"val_{name}": sums[name] / len(self.held_out.rows) for name in ("dpo_loss", "accuracy", "margin")}

        return Task(
            model=self.start.model,
            accelerator=self.accelerator,
            batches=step_batches,
            loss=loss,
            steps_per_epoch=self.batches.steps_per_epoch,
            flops_per_token=training_flops(self.start.model, self.config.data.seq_len),
            save_model=lambda folder: save_into(folder, self.start, self.context),
            evaluate=evaluate if self.held_out is not None else None,
            evaluation_tokens=self.held_out.rows.tokens if self.held_out is not None else 0,
            loss_name="dpo_loss",
        )
