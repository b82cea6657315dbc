"""A model folder for transformers and the programs that read its folders, read back and compared before it is kept.

mmcli's own folders already have Hugging Face names, so this checks that the model's family is one that others know,
and changes the type of the weights where asked.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mmcli import __version__
from mmcli.data.demo.documents import documents
from mmcli.errors import MmcliError, UserError
from mmcli.evaluation.loss import document_batches, model_losses, sum_losses
from mmcli.export.locate import RECORD_FILE, fingerprint, refuse_foreign
from mmcli.export.round_trip import check_tokenizer
from mmcli.files import atomic_folder
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import OWN, READABLE, family_of
from mmcli.model.formats.fields import described
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import GENERATION, load_model, save_model
from mmcli.model.formats.read import keep_generation
from mmcli.model.formats.weights import WEIGHTS, open_weights
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

HfDtype = Literal["fp32", "bf16", "fp16"]
TORCH_TYPES: dict[HfDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMAT = "huggingface"
PERPLEXITY_LIMIT = 0.01  # greatest rise, as a share
TEXTS, TEXT_TOKENS, TEXT_SEED = 8, 64, 1  # training on the built-in corpus takes seed 0: these documents are others


@dataclass(frozen=True)
class HfExport:
    """An export that was read back and compared."""

    folder: Path
    model_type: str
    dtype: HfDtype
    bytes: int  # of the weights
    round_trips: int  # texts and conversations that its tokenizer encodes and decodes alike
    loss_before: float  # nats a token on held-out documents, of the model as it was, in fp32
    loss_after: float  # of the weights as written, in fp32

    @property
    def perplexity_rise(self) -> float:
        """As a share; 0 where the weights are the same."""
        return math.expm1(self.loss_after - self.loss_before)


def export_huggingface(source: Path, out: Path, *, dtype: HfDtype | None = None, stage: str | None = None) -> HfExport:
    """Write the model in `source` into `out`, which is replaced if it is an earlier export of this kind.

    Args:
        dtype: of the weights; None: that of the source.
        stage: of the run that the model came from, stored in config.json: it tells a chat model from a base model.

    Raises:
        UserError: a model that no known family holds (with the fields), weights that fp16 cannot hold, or `out` is
            not an earlier export.
        MmcliError: what was written does not read back as the same model; nothing is left of it.
    """
    refuse_foreign(out, FORMAT)
    config = read_model_config(source)
    refuse_unknown_family(config)
    tokenizer = Tokenizer.load(source)
    stored = open_weights(source).dtype()
    target = stored if dtype is None else TORCH_TYPES[dtype]
    model = load_model(source)
    before = _held_out_loss(model, tokenizer)
    model = model.to(target)
    _refuse_overflow(model)
    with atomic_folder(out) as beside:
        save_model(beside, model, config, tokenizer, extra={"Exported by": "mmcli export hf"})
        generation = source / GENERATION
        settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        keep_generation(beside, settings)
        if stage is not None:
            path = beside / "config.json"
            document = {**json.loads(path.read_text(encoding="utf-8")), "mmcli_stage": stage}
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        trips = check_tokenizer(beside, tokenizer, list(itertools.islice(documents(TEXT_SEED), TEXTS)))
        after = _read_back(beside, model, tokenizer, before)
        size = (beside / WEIGHTS).stat().st_size
        record = {"format": FORMAT, "source": fingerprint(source), "mmcli": __version__, "loss": [before, after]}
        (beside / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    named: HfDtype = next(name for name, each in TORCH_TYPES.items() if each == target)
    return HfExport(out, family_of(config).model_type, named, size, trips, before, after)


def refuse_unknown_family(config: ModelConfig) -> None:
    """Raises UserError for a model that only mmcli can run, with the fields that keep it from the nearest family."""
    if family_of(config) is not OWN:
        return
    nearest = min(READABLE, key=lambda family: (len(family.unsupported(config)), family.model_type))
    fields = described(config, nearest.unsupported(config))
    what = f"no Hugging Face family has this model; the nearest, {nearest.model_type}, differs in: {fields}"
    raise UserError(what, "run it with mmcli, or for other programs: mmcli export onnx")


def _refuse_overflow(model: Transformer) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            largest = torch.finfo(parameter.dtype).max
            what = f"{name} has values that {parameter.dtype} cannot hold (at most {largest:g}), or that are not finite"
            raise UserError(what, "export with --dtype bf16 or fp32")


def _read_back(folder: Path, model: Transformer, tokenizer: Tokenizer, before: float) -> float:
    """The held-out loss of the model in `folder`, whose tensors and configuration are those of `model`.

    Raises:
        MmcliError: they are not, or the perplexity rose by more than `PERPLEXITY_LIMIT`.
    """
    again = load_model(folder, dtype=model.head_weight.dtype)
    report = "nothing was kept; report this with the model's config.json"
    if again.config != model.config:
        raise MmcliError("the exported config.json reads back as another configuration", report)
    for name, tensor in model.state_dict().items():
        if not torch.equal(again.state_dict()[name], tensor):
            raise MmcliError(f"the exported {name} reads back as other numbers", report)
    after = _held_out_loss(again.float(), tokenizer)
    if not after - before <= math.log1p(PERPLEXITY_LIMIT):  # NaN is refused too
        limit = f"perplexity may rise by {PERPLEXITY_LIMIT:.0%}"
        what = f"the loss rose from {before:.4g} to {after:.4g} nats a token in {model.head_weight.dtype} ({limit})"
        raise MmcliError(what, "nothing was kept; export with --dtype fp32")
    return after


def _held_out_loss(model: Transformer, tokenizer: Tokenizer) -> float:
    """Nats a token on built-in documents that the built-in corpus does not hold."""
    length = min(TEXT_TOKENS, model.config.max_seq_len) + 1
    ids = [tokenizer.encode_document(text)[:length] for text in itertools.islice(documents(TEXT_SEED), TEXTS)]
    return sum_losses(model_losses(model, document_batches(ids))).loss
