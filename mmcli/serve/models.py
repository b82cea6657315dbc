"""The models of a server: opened, named, and what memory they take."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcli.errors import UserError
from mmcli.evaluation.engines import check_vocabulary, choose_backend, load_engine
from mmcli.generate.conversation import is_chat_model
from mmcli.generate.engine import Engine
from mmcli.machine import memory
from mmcli.model.count import weight_bytes
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import RUN_NAME, ModelRef, Run
from mmcli.serve.metrics import ModelMetrics
from mmcli.serve.scheduler import Scheduler
from mmcli.stage import Reporter
from mmcli.text.chat import stop_ids
from mmcli.text.tokenizer import Tokenizer

FLOAT = 4  # bytes: weights, keys and values are fp32


@dataclass(frozen=True)
class ServedModel:
    """A model behind the interface.

    Attributes:
        name: what `/v1/models` lists.
        chat: it answers messages; else it only continues text.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat: bool
    stops: frozenset[int]
    scheduler: Scheduler
    metrics: ModelMetrics
    created: int  # seconds since 1970


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes: its weights, and keys and values of all slots when they are full."""

    name: str
    weights: int
    cache: int


def model_name(ref: ModelRef) -> str:
    """The name of a run, or of a model's folder."""
    if ref.run is not None:
        return ref.label
    path = ref.path.resolve()
    return path.parent.name if path.name == "model" else path.name


def footprint(ref: ModelRef, *, slots: int, max_len: int | None) -> Footprint:
    """What a model will take at most, from its configuration.

    Raises:
        UserError: no model there.
    """
    config = read_model_config(ref.path)
    tokens = slots * (max_len or config.max_seq_len)
    cache = 2 * config.n_layers * config.n_kv_heads * config.d_head * tokens * FLOAT
    return Footprint(model_name(ref), weight_bytes(config, "fp32"), cache)


def check_memory(footprints: Sequence[Footprint], most: float | None = None) -> int:
    """The bytes of all together.

    Args:
        most: bytes that they may take; None for as many as the machine has left.

    Raises:
        UserError: they are more than that, or than the machine has left.
    """
    needed = sum(each.weights + each.cache for each in footprints)
    machine = memory()
    bounds = [(most, f"--max-memory allows {_gb(most)}")] if most is not None else []
    bounds += [(machine.available, f"{_gb(machine.available)} are available")] if machine is not None else []
    for bound, words in bounds:
        if needed > bound:
            parts = "; ".join(f"{each.name}: {_gb(each.weights)} + {_gb(each.cache)}" for each in footprints)
            raise UserError(
                f"the models take up to {_gb(needed)} (weights + keys and values: {parts}), {words}",
                "give fewer models, fewer --slots or a smaller --max-len",
            )
    return needed


def open_model(
    ref: ModelRef,
    backend: str,
    *,
    device: str,
    slots: int,
    max_len: int | None,
    queue: int,
    report: Reporter | None = None,
) -> ServedModel:
    """Load a model and start its scheduler.

    Raises:
        UserError: no model there, or one that the backend cannot run.
    """
    tokenizer = Tokenizer.load(ref.path)
    engine = load_engine(ref, choose_backend(ref, backend), device=device, slots=slots, max_len=max_len, report=report)
    check_vocabulary(ref, tokenizer, engine.vocab_size)
    return serve_engine(
        model_name(ref), engine, tokenizer, chat=is_chat_model(ref.path, tokenizer, stage=ref.stage), queue=queue
    )


def open_adapter(base: ServedModel, ref: ModelRef, name: str, folder: Path, *, queue: int) -> ServedModel:
    """A served model with an adapter, over the weights of `base`; keys and values are its own.

    Args:
        ref: the model of `base`.
        folder: of the adapter, in PEFT's layout.

    Raises:
        UserError: the base runs on another backend than torch, or the adapter cannot be used.
    """
    from mmcli.generate.torch_engine import TorchEngine
    from mmcli.train.adapters import with_adapter

    if not isinstance(base.engine, TorchEngine):
        raise UserError(f"the adapter {name} needs the torch backend", "leave --backend out")
    model = with_adapter(base.engine.model, folder)
    engine = TorchEngine(model, slots=base.engine.slots, max_len=base.engine.max_len)
    run_folder = folder.resolve().parent
    stage = Run(run_folder).stage if RUN_NAME.match(run_folder.name) else "sft"  # of others, as if made for chat
    return serve_engine(
        name, engine, base.tokenizer, chat=is_chat_model(ref.path, base.tokenizer, stage=stage), queue=queue
    )


def serve_engine(name: str, engine: Engine, tokenizer: Tokenizer, *, chat: bool, queue: int) -> ServedModel:
    """A served model over an engine that is open already."""
    metrics = ModelMetrics()
    scheduler = Scheduler(engine, queue=queue, metrics=metrics)
    return ServedModel(name, engine, tokenizer, chat, stop_ids(tokenizer), scheduler, metrics, created=int(time.time()))


def refuse_same_names(refs: Collection[ModelRef], adapters: Mapping[str, Path]) -> None:
    """Raises UserError where two models have one name: a request could not say which it means."""
    seen: dict[str, Path] = {}
    for name, path in [*((model_name(ref), ref.path) for ref in refs), *adapters.items()]:
        if name in seen:
            what = f'two models are named "{name}": {seen[name]} and {path}'
            raise UserError(what, "give the adapter another name" if name in adapters else "rename one of the folders")
        seen[name] = path


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
