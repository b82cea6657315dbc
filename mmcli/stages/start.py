"""Shared by the training stages before the loop: the tokenizer, the model, the device, the micro-batch size."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.config import Layer, resolve, to_tables
from mmcli.data.encode.texts import Corpus
from mmcli.data.sources.sources import OpenedData
from mmcli.errors import UserError
from mmcli.files import atomic_folder
from mmcli.inputs import NOUNS, Input, difference, pin_inputs, read_inputs
from mmcli.model.config import ModelConfig
from mmcli.model.device import MICRO_BATCH_TOKENS
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.ranks import even_share
from mmcli.run import RESOLVED, ModelRef, model_at, where_now
from mmcli.stage import StageContext, Transform
from mmcli.stages.pins import adapter_inputs, data_inputs, model_input
from mmcli.text.find import find_tokenizer
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import ENOUGH_TEXT, train_tokenizer
from mmcli.train.adapters import adapt
from mmcli.train.checkpoint import list_checkpoints
from mmcli.train.config import TrainConfig
from mmcli.train.device import Accelerator, choose_accelerator, make_deterministic, training_device


@dataclass(frozen=True)
class Start:
    """The tokenizer and the model that a training starts from.

    Attributes:
        parent: the model of `--from`; its folder may be gone where a resumed run does not need it.
        accelerator: the device that the model is on, and the precision, chosen for its width.
        adapter: applied to the model; only its parts train.
        initial: the model has the weights that the training starts from; False where those of a checkpoint replace
            them, and the parent was not read for that.
    """

    tokenizer: Tokenizer
    model: Transformer
    parent: ModelRef | None
    accelerator: Accelerator
    adapter: Transform | None = None
    initial: bool = True


def prepare_start(model: ModelConfig | None, data: OpenedData, train: TrainConfig, context: StageContext) -> Start:
    """The tokenizer and the model, new or those of `--from`, on its device; torch is deterministic from here on.

    A run keeps by content what it reads; a resumed one compares all of it before anything is built. It needs the model
    of `--from` only until it has a checkpoint, and with an adapter, whose checkpoints hold the adapter alone.

    Args:
        model: the shape of a new model, or what one asks of the parent's; None for a stage that builds no model.
        data: what the stage trains on; a tokenizer is trained on it where there is none yet.

    Raises:
        UserError: no such device, model or tokenizer, parts that do not fit each other, or an input that changed since
            the run began.
    """
    device = training_device(train.device)
    make_deterministic(device)
    parent = _choose_parent(train, context)
    has_checkpoint = context.resume and bool(list_checkpoints(context.run.checkpoints))
    initial = not has_checkpoint or train.adapter is not None  # else the checkpoint holds every weight
    pin_inputs(context, {**data_inputs(data, context), **adapter_inputs(train, context)})
    if parent is not None and initial:
        pin_model("parent", parent, context)
    elif parent is not None:
        tell_change("parent", parent, context)
    tokenizer = _keep_tokenizer(model, data, parent, context)
    config = _choose_shape(model, tokenizer, parent, context)
    if parent is not None and initial:
        built = load_model(parent.path, device=device)
        if built.config != config:
            what = f"{parent.label} has another shape than the model that {context.run.name} began with"
            raise UserError(what, "restore it, or start a new run")
    else:
        built = Transformer(config, seed=train.seed).to(device)
    context.report.note(describe_model(config, context.run.info().get("preset")))
    if not config.router_learns:
        what = "the router learns nothing from the loss: with norm_topk_prob the weight of a single expert is always 1"
        context.report.warn(what + ("" if parent else " (--set model.norm_topk_prob=false)"))
    seq_len = data.config.seq_len
    if seq_len > config.max_seq_len:
        what = f"data.seq_len = {seq_len} is longer than the model's max_seq_len = {config.max_seq_len}"
        raise UserError(what, f"give --seq-len {config.max_seq_len} or less")
    built.checkpoint_layers = train.activation_checkpointing
    adapter = _apply_adapter(built, parent, train, context)
    accelerator = choose_accelerator(train.device, train.precision, context, width=config.dim)
    return Start(tokenizer, built, parent, accelerator, adapter, initial or parent is None)


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
    folder = context.run.started_from()
    if folder is not None:
        return model_at(folder)
    parent = context.find_model(train.start_from)
    context.run.choose("start_from", lambda: as_kept(parent.path, context.run.path.parent))
    context.report.note(f"from {_describe(parent)}")
    context.run.update(parent=parent.run.name if parent.run else parent.label)
    return parent


def as_kept(folder: Path, runs_dir: Path) -> str:
    """A folder as a run keeps it: within the folder of the runs if it is there, else absolute."""
    whole, runs = folder.resolve(), runs_dir.resolve()
    return whole.relative_to(runs).as_posix() if whole.is_relative_to(runs) else str(whole)


def pin_model(name: str, model: ModelRef, context: StageContext) -> None:
    """Keep what a model folder holds as the input `name` of the run; a resumed run must find it as it was.

    Raises:
        UserError: the folder is gone, or holds another model than the run began with.
    """
    run = context.run
    if context.resume and not (model.path / "config.json").is_file():
        has_checkpoint = bool(list_checkpoints(run.checkpoints))
        why = f"what {run.name} has saved does not hold its weights" if has_checkpoint else "there is no checkpoint yet"
        raise UserError(f"the {NOUNS[name]} of {run.name}, {model.path}, is gone, and {why}", "bring it back")
    pin_inputs(context, {name: model_input(model.path, context)})


def find_reference(name: str, context: StageContext) -> ModelRef:
    """A second model that a person named (a reference, a teacher): decided once, kept by content as `reference`.

    Whoever reads it in a resumed run calls `pin_model("reference", ...)`, which compares it.

    Raises:
        UserError: there is none.
    """
    run = context.run
    kept = run.read_config(RESOLVED).get("reference")
    if kept is not None:
        return model_at(where_now(run.path.parent / str(kept)))
    found = context.find_model(name)
    pin_model("reference", found, context)
    run.choose("reference", lambda: as_kept(found.path, run.path.parent))
    context.report.note(f"reference: {found.label}")
    return found


def tell_change(name: str, model: ModelRef, context: StageContext) -> None:
    """Say that a model folder changed, or nothing: what a resumed run took from it lies in the run by now."""
    before = read_inputs(context.run).get(name)
    if before is None or not (model.path / "config.json").is_file():
        return
    if change := difference(before, model_input(model.path, context)):
        what, was, now = change
        told = f"the {NOUNS[name]}, {model.label}, changed since {context.run.name} began ({what} was {was}, is {now})"
        context.report.warn(f"{told}; it is not read again")


def _keep_tokenizer(
    model: ModelConfig | None, data: OpenedData, parent: ModelRef | None, context: StageContext
) -> Tokenizer:
    """The tokenizer of the run, which has a copy of its own."""
    kept = context.run.path / "tokenizer"
    if kept.is_dir():
        tokenizer = Tokenizer.load(kept)
    else:
        vocab_size = model.vocab_size if model is not None else ModelConfig.vocab_size
        tokenizer = _choose_tokenizer(vocab_size, data, parent, context)
        with atomic_folder(kept) as folder:
            tokenizer.save(folder)
    pin_inputs(context, {"tokenizer": Input(tokenizer.fingerprint)})
    context.run.update(tokenizer=tokenizer.fingerprint)
    return tokenizer


def _choose_shape(
    model: ModelConfig | None, tokenizer: Tokenizer, parent: ModelRef | None, context: StageContext
) -> ModelConfig:
    """The shape of the model, which the run keeps: it does not take the parent to build it again."""

    def choose() -> dict[str, Any]:
        if parent is None:
            assert model is not None, "a stage without a model of its own starts from one"
            return to_tables(_fit_vocabulary(model, tokenizer, context))
        config = read_model_config(parent.path)
        if model is not None:
            _check_agreement(model, config, parent, context)
        return to_tables(config)

    kept = Layer(str(context.run.path / RESOLVED), context.run.choose("model", choose))
    return resolve(ModelConfig, [kept]).config


def _describe(ref: ModelRef) -> str:
    state = ref.run.info()["state"] if ref.run else ""
    return ref.label + (f" ({state})" if state and state != "finished" else "")


def _choose_tokenizer(vocab_size: int, data: OpenedData, parent: ModelRef | None, context: StageContext) -> Tokenizer:
    """The tokenizer of the parent, the one named, the latest trained, or a new one for this data."""
    runs_dir, report = context.runs_dir, context.report
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
        latest = context.find_model("latest:tokenizer")
    except UserError:
        report.note("no tokenizer yet: training one on this data")
        corpus = Corpus([data.train], ENOUGH_TEXT, template=True)
        return train_tokenizer(corpus, vocab_size=vocab_size, report=report)
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


class MicroBatch:
    """Units (rows, pairs) of a forward pass. Where memory does not suffice they are halved, and stay so on resume."""

    def __init__(self, most: int, batch_size: int, context: StageContext) -> None:
        """As many as fit, `most`, or fewer where the `batch_size` units of a step are shared more evenly so."""
        self.size, self._run = even_share(most, batch_size, context.ranks.world), context.run

    def halve(self) -> int | None:
        """Half as many from now on; None: it is a single one."""
        if self.size == 1:
            return None
        self.size //= 2
        self._run.record_choice("micro_batch", self.size)
        return self.size


def choose_micro_batch(
    train: TrainConfig, model: ModelConfig, row_tokens: int, accelerator: Accelerator, context: StageContext
) -> MicroBatch:
    """Units at once: as asked, else about as many tokens as the device takes well; kept on resume.

    Args:
        row_tokens: tokens of a unit.
    """
    run = context.run
    if train.micro_batch is not None:
        halved = int(run.read_config("resolved.toml").get("micro_batch", train.micro_batch))
        return MicroBatch(min(train.micro_batch, train.batch_size, halved), train.batch_size, context)
    at_512 = MICRO_BATCH_TOKENS.get(accelerator.device.type, 1024)
    if accelerator.device.type == "cpu" and accelerator.precision == "bf16":
        at_512 *= 2  # a sixth less time a step at 640 wide, in the memory of half as many in fp32
    rows = max(1, max(at_512, at_512 * 512 // model.dim) // row_tokens)
    most = int(run.choose("micro_batch", lambda: min(rows, train.batch_size)))
    return MicroBatch(most, train.batch_size, context)


def save_into(folder: Path, start: Start, context: StageContext) -> None:
    """Fill `folder` with the model as others read it; its config.json says which stage made it.

    "pretrain" is a model that continues text; "pretrain-chat" one whose text was mixed with conversations.
    """
    stage, data = context.run.stage, context.run.info().get("data")
    if stage == "pretrain" and isinstance(data, dict) and data.get("kind") == "mixed":
        stage = "pretrain-chat"
    facts = {"Trained by": f"mmcli {context.run.stage}", "Run": context.run.name}
    model = start.model
    if start.adapter is not None:
        model = start.adapter.merge(model)
    save_model(folder, model, model.config, start.tokenizer, extra=facts)
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "mmcli_stage": stage}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_adapter(start: Start, context: StageContext) -> None:
    """Write the adapter's own part into `adapter/` of the run, where an adapter is trained."""
    if start.adapter is None:
        return
    with atomic_folder(context.run.path / "adapter") as own:
        start.adapter.save(own, start.model)


def describe_model(config: ModelConfig, preset: Any) -> str:
    """One line about a model: its name, shape and size."""
    from mmcli.model.count import count_parameters

    count = count_parameters(config)
    active = f" ({count.active / 1e6:.1f}M active)" if count.active != count.total else ""
    name = f"{preset}: " if preset else ""
    return f"model: {name}{config.dim} x {config.n_layers} layers, {count.total / 1e6:.1f}M parameters{active}"
