"""Shared by the training stages before the loop: the tokenizer, the model, the micro-batch size."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmcli.config import to_tables
from mmcli.data.encode.texts import Corpus
from mmcli.data.sources.sources import OpenedData
from mmcli.errors import UserError
from mmcli.files import atomic_folder
from mmcli.model.config import ModelConfig
from mmcli.model.device import MICRO_BATCH_TOKENS
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.run import ModelRef, find_model
from mmcli.stage import StageContext, Transform
from mmcli.text.find import find_tokenizer
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import ENOUGH_TEXT, train_tokenizer
from mmcli.train.adapters import adapt
from mmcli.train.config import TrainConfig
from mmcli.train.device import Accelerator


@dataclass(frozen=True)
class Start:
    """The tokenizer and the model that a training starts from."""

    tokenizer: Tokenizer
    model: Transformer
    parent: ModelRef | None
    adapter: Transform | None = None  # applied to the model; only its parts train


def prepare_start(
    model: ModelConfig | None, data: OpenedData, train: TrainConfig, context: StageContext, device: torch.device
) -> Start:
    """The tokenizer and the model: new, or those of `--from`.

    Args:
        model: the shape of a new model, or what one asks of the parent's; None for a stage that builds no model.
        data: what the stage trains on; a tokenizer is trained on it where there is none yet.

    Raises:
        UserError: no such model or tokenizer, or parts that do not fit each other.
    """
    parent = _choose_parent(train, context)
    kept = context.run.path / "tokenizer"
    if kept.is_dir():
        tokenizer = Tokenizer.load(kept)
    else:
        vocab_size = model.vocab_size if model is not None else ModelConfig.vocab_size
        tokenizer = _choose_tokenizer(vocab_size, data, parent, context)
        with atomic_folder(kept) as folder:
            tokenizer.save(folder)
    context.run.update(tokenizer=tokenizer.fingerprint)
    if parent is not None:
        config = read_model_config(parent.path)
        if model is not None:
            _check_agreement(model, config, parent, context)
        built = load_model(parent.path, device=device)
    else:
        assert model is not None, "a stage without a model of its own starts from one"
        config = _fit_vocabulary(model, tokenizer, context)
        built = Transformer(config, seed=train.seed).to(device)
    context.report.note(describe_model(config, context.run.info().get("preset")))
    seq_len = data.config.seq_len
    if seq_len > config.max_seq_len:
        what = f"data.seq_len = {seq_len} is longer than the model's max_seq_len = {config.max_seq_len}"
        raise UserError(what, f"give --seq-len {config.max_seq_len} or less")
    built.checkpoint_layers = train.activation_checkpointing
    return Start(tokenizer, built, parent, _apply_adapter(built, parent, train, context))


def _apply_adapter(
    model: Transformer, parent: ModelRef | None, train: TrainConfig, context: StageContext
) -> Transform | None:
    if train.adapter is None:
        return None
    if parent is None:
        what = f"--adapter {train.adapter} on a new model would leave its weights as they were drawn"
        raise UserError(what, "adapt a trained one: --from latest")
    return adapt(model, train.adapter, train.adapter_set, seed=train.seed, context=context)


def _choose_parent(train: TrainConfig, context: StageContext) -> ModelRef | None:
    """The model of `--from`, decided once: `latest` must not mean another run on resume."""
    if train.start_from is None:
        return None
    runs_dir = context.run.path.parent
    parent = find_model(context.run.choose("start_from", lambda: _settled(str(train.start_from), runs_dir)), runs_dir)
    if not context.resume:
        context.report.note(f"from {_describe(parent)}")
        context.run.update(parent=parent.label)
    return parent


def _settled(ref: str, runs_dir: Path) -> str:
    found = find_model(ref, runs_dir)
    return found.run.name if found.run else str(found.path.resolve())


def _describe(ref: ModelRef) -> str:
    state = ref.run.info()["state"] if ref.run else ""
    return ref.label + (f" ({state})" if state and state != "finished" else "")


def _choose_tokenizer(vocab_size: int, data: OpenedData, parent: ModelRef | None, context: StageContext) -> Tokenizer:
    """The tokenizer of the parent, the one named, the latest trained, or a new one for this data."""
    runs_dir, report = context.run.path.parent, context.report
    wanted = data.config.tokenizer
    if parent is not None:
        tokenizer = Tokenizer.load(parent.path)
        if wanted is not None:
            named = find_tokenizer(wanted, runs_dir)
            if named.fingerprint != tokenizer.fingerprint:
                what = f"--tokenizer {wanted} is not the tokenizer that {parent.label} was trained with"
                raise UserError(what, "leave --tokenizer out: the model's own is used")
        return tokenizer
    if wanted is not None:
        return find_tokenizer(wanted, runs_dir)
    try:
        latest = find_model("latest:tokenizer", runs_dir)
    except UserError:
        report.note("no tokenizer yet: training one on this data")
        return train_tokenizer(Corpus([data.train], ENOUGH_TEXT), vocab_size=vocab_size, report=report)
    report.note(f"tokenizer: {latest.label}")
    return Tokenizer.load(latest.path)


def _fit_vocabulary(model: ModelConfig, tokenizer: Tokenizer, context: StageContext) -> ModelConfig:
    """The configuration with the tokenizer's vocabulary, unless the person chose a size, which must hold it."""
    source = context.resolved.sources["model.vocab_size"]
    if model.vocab_size == tokenizer.vocab_size:
        return model
    if not context.resolved.chosen("model.vocab_size") or source.startswith("preset "):
        context.report.note(f"vocabulary: {tokenizer.vocab_size:,}, the tokenizer's")
        return dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    if model.vocab_size < tokenizer.vocab_size:
        what = f"model.vocab_size = {model.vocab_size} (from {source}) < the tokenizer's {tokenizer.vocab_size}"
        raise UserError(what, "leave model.vocab_size out, or train a smaller tokenizer")
    return model


def _check_agreement(model: ModelConfig, config: ModelConfig, parent: ModelRef, context: StageContext) -> None:
    """What the person asked of the model must agree with the parent's `config`."""
    mine, theirs = to_tables(model), to_tables(config)
    for name, value in mine.items():
        source = context.resolved.sources[f"model.{name}"]
        if context.resolved.chosen(f"model.{name}") and name != "vocab_size" and value != theirs[name]:
            what = f"model.{name} = {value} (from {source}), but {parent.label} has {theirs[name]}"
            raise UserError(what, "leave it out: the model keeps its shape; or train from zero without --from")


def choose_micro_batch(
    train: TrainConfig, model: ModelConfig, row_tokens: int, accelerator: Accelerator, context: StageContext
) -> int:
    """Units (rows, pairs) at once: as asked, else about as many tokens as the device takes well; kept on resume.

    Args:
        row_tokens: tokens of a unit.
    """
    if train.micro_batch is not None:
        return min(train.micro_batch, train.batch_size)
    at_512 = MICRO_BATCH_TOKENS.get(accelerator.device.type, 1024)
    if accelerator.device.type == "cpu" and accelerator.precision == "bf16":
        at_512 *= 2  # a sixth less time a step at 640 wide, in the memory of half as many in fp32
    rows = max(1, max(at_512, at_512 * 512 // model.dim) // row_tokens)
    return int(context.run.choose("micro_batch", lambda: min(rows, train.batch_size)))


def save_into(folder: Path, start: Start, context: StageContext) -> None:
    """Fill `folder` with the model as others read it; its config.json says which stage made it."""
    facts = {"Trained by": f"mmcli {context.run.stage}", "Run": context.run.name}
    model = start.model
    if start.adapter is not None:
        with atomic_folder(context.run.path / "adapter") as own:
            start.adapter.save(own, model)
        model = start.adapter.merge(model)
    save_model(folder, model, model.config, start.tokenizer, extra=facts)
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "mmcli_stage": context.run.stage}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_model(config: ModelConfig, preset: Any) -> str:
    """One line about a model: its name, shape and size."""
    from mmcli.model.count import count_parameters

    count = count_parameters(config)
    active = f" ({count.active / 1e6:.1f}M active)" if count.active != count.total else ""
    name = f"{preset}: " if preset else ""
    return f"model: {name}{config.dim} x {config.n_layers} layers, {count.total / 1e6:.1f}M parameters{active}"
