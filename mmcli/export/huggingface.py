"""A model folder for transformers and the programs that read its folders, read back and compared before it is kept.

mmcli's own folders already have Hugging Face names, so this checks that the model's family is one that others know,
and changes the type of the weights where asked.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mmcli import __version__
from mmcli.errors import MmcliError, UserError
from mmcli.export.held_out import held_out_loss, held_out_texts, refuse_rise
from mmcli.export.locate import RECORD_FILE, fingerprint, refuse_foreign
from mmcli.export.round_trip import check_tokenizer
from mmcli.files import atomic_folder
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import MINIMIND, TRANSFORMERS, Family
from mmcli.model.formats.fields import described
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import GENERATION, load_model, save_model
from mmcli.model.formats.read import keep_generation
from mmcli.model.formats.weights import WEIGHTS, open_weights
from mmcli.model.transformer import Transformer
from mmcli.report.card import model_card
from mmcli.run import Run
from mmcli.text.tokenizer import Tokenizer

HfDtype = Literal["fp32", "bf16", "fp16"]
HfLayout = Literal["transformers", "minimind"]
LAYOUTS: dict[HfLayout, tuple[Family, ...]] = {"transformers": TRANSFORMERS, "minimind": (MINIMIND,)}
TORCH_TYPES: dict[HfDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMAT = "huggingface"
EXPERTS = {"use_moe", "n_shared_experts"}  # what makes another kind of model: no family that differs there is near
PERPLEXITY_LIMIT = 0.01  # greatest rise, as a share


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


def export_huggingface(
    source: Path,
    out: Path,
    *,
    dtype: HfDtype | None = None,
    layout: HfLayout = "transformers",
    stage: str | None = None,
    card_of: Run | None = None,
    license: str | None = None,
) -> HfExport:
    """Write the model in `source` into `out`, which is replaced if it is an earlier export of this kind.

    Args:
        dtype: of the weights; None: that of the source.
        layout: "transformers": of the first of its families that holds the model; "minimind": that of the released
            MiniMind2, whose own code reads it.
        stage: of the run that the model came from, stored in config.json: it tells a chat model from a base model.
        card_of: the run that a model card tells of; None: no card.
        license: that the card states, an identifier of the Hugging Face hub.

    Raises:
        UserError: a model that no known family holds (with the fields), weights that fp16 cannot hold, or `out` is
            not an earlier export.
        MmcliError: what was written does not read back as the same model; nothing is left of it.
    """
    refuse_foreign(out, FORMAT)
    config = read_model_config(source)
    family = find_family(config, layout)
    tokenizer = Tokenizer.load(source)
    stored = open_weights(source).dtype()
    target = stored if dtype is None else TORCH_TYPES[dtype]
    model = load_model(source)
    before = held_out_loss(model, tokenizer)
    model = model.to(target)
    _refuse_overflow(model)
    with atomic_folder(out) as beside:
        save_model(beside, model, config, tokenizer, extra={"Exported by": "mmcli export hf"}, family=family)
        generation = source / GENERATION
        settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        keep_generation(beside, settings)
        if stage is not None:
            path = beside / "config.json"
            document = {**json.loads(path.read_text(encoding="utf-8")), "mmcli_stage": stage}
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if card_of is not None:
            for name, content in model_card(card_of, model_type=family.model_type, license=license).items():
                (beside / name).write_bytes(content)
        trips = check_tokenizer(beside, tokenizer, held_out_texts())
        after = _read_back(beside, model, tokenizer, before)
        size = (beside / WEIGHTS).stat().st_size
        record = {"format": FORMAT, "source": fingerprint(source), "mmcli": __version__, "loss": [before, after]}
        (beside / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    named: HfDtype = next(name for name, each in TORCH_TYPES.items() if each == target)
    return HfExport(out, family.model_type, named, size, trips, before, after)


def find_family(config: ModelConfig, layout: HfLayout) -> Family:
    """The first family of `layout` that holds all of `config`.

    Raises:
        UserError: there is none, with the fields that keep the model from the nearest.
    """
    misfits = [(family, family.unsupported(config)) for family in LAYOUTS[layout]]
    nearest, fields = min(misfits, key=lambda misfit: (len(misfit[1]), len(EXPERTS.intersection(misfit[1]))))
    if not fields:
        return nearest
    if layout == "minimind":
        raise UserError(f"MiniMind2 differs from this model in: {described(config, fields)}", "omit --layout")
    fix = "run it with mmcli, or for other programs: mmcli export onnx"
    if not MINIMIND.unsupported(config):
        fix = "for MiniMind's own code: --layout minimind; for other programs: mmcli export onnx"
    differs = f"the nearest, {nearest.model_type}, differs in: {described(config, fields)}"
    raise UserError(f"no Hugging Face family has this model; {differs}", fix)


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
    after = held_out_loss(again.float(), tokenizer)
    refuse_rise(before, after, PERPLEXITY_LIMIT, str(model.head_weight.dtype), "fp32")
    return after
