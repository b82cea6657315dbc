"""A GGUF file for llama.cpp, Ollama and LM Studio, read back and compared before it is kept.

The package `gguf` writes and quantizes it. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmcli import __version__
from mmcli.errors import MmcliError, UserError
from mmcli.export.held_out import held_out_loss, held_out_texts, refuse_rise
from mmcli.export.locate import fingerprint
from mmcli.export.modelfile import write_modelfile
from mmcli.export.round_trip import compare_tokenizers
from mmcli.files import atomic_file
from mmcli.model.config import ModelConfig
from mmcli.model.formats.gguf_model import GgufFile, build_gguf_model, open_gguf
from mmcli.model.formats.gguf_table import (
    ARCHITECTURES,
    NAMES,
    ROTARY_FACTORS,
    STACKED,
    find_architecture,
    rotary_factors,
)
from mmcli.model.formats.gguf_tokenizer import gguf_tokenizer, tokenizer_fields
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.formats.parameters import disk_tensors, to_neighbours
from mmcli.model.transformer import Transformer
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GgufDtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
PERPLEXITY_LIMITS: dict[GgufDtype, float] = {"f32": 0.001, "f16": 0.01, "bf16": 0.01, "q8_0": 0.02, "q4_0": 0.3}
FILE_TYPES: dict[GgufDtype, int] = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # llama.cpp's llama_ftype
BLOCK = 32  # numbers that share a scale in q8_0 and q4_0
# Greatest rounding of a number, as a share of the largest of its block: half a step, and the scale's own rounding to
# fp16; in q4_0, which has one value more on one side of 0, a whole step.
ROUNDING = {"Q8_0": 0.5 / 127 + 2**-10, "Q4_0": 1 / 8 + 2**-10}
SMALLEST = 4e-6  # what a block of still smaller numbers may lose: fp16 has no scale for it
SOURCE_KEY = "mmcli.source"
REPORT = "nothing was kept; report this with the model's config.json"


@dataclass(frozen=True)
class GgufExport:
    """An export that was read back and compared."""

    path: Path
    modelfile: Path
    architecture: str
    dtype: GgufDtype
    bytes: int
    tensors: dict[str, int]  # how many are stored in each type
    round_trips: int  # texts and conversations that its tokenizer encodes and decodes alike
    loss_before: float  # nats a token on held-out documents, of the model as it was, in fp32
    loss_after: float  # of the weights as written

    @property
    def perplexity_rise(self) -> float:
        """As a share; 0 where the weights are the same."""
        return math.expm1(self.loss_after - self.loss_before)


def export_gguf(source: Path, out: Path, *, dtype: GgufDtype = "f16", report: Reporter | None = None) -> GgufExport:
    """Write the model in `source` into the file `out`, which is replaced if it is an earlier export, and beside it a
    Modelfile for Ollama.

    Vectors and routers are stored in f32 in every type. In q4_0 the embedding and the head are q8_0; a matrix whose
    rows are no multiple of 32 is f16 in the quantized types.

    Raises:
        UserError: the package `gguf` is missing, a model or tokenizer that llama.cpp has no form for (with the
            fields), weights that the type cannot hold, or `out` is something else.
        MmcliError: what was written does not read back as the same model; nothing is left of it.
    """
    report = report or Silent()
    try:
        import gguf
    except ImportError:
        raise UserError("export gguf needs the package gguf", "install it: pip install 'mmcli[gguf]'") from None
    _refuse_foreign(out)
    config = read_model_config(source)
    architecture = find_architecture(config)
    tokenizer = Tokenizer.load(source)
    vocabulary = tokenizer_fields(tokenizer, config.vocab_size)
    model = load_model(source)
    report.note("measuring the model as it is")
    before = held_out_loss(model, tokenizer)
    tensors = _tensors(model, architecture)
    types = {name: _type_of(name, tensor, dtype) for name, tensor in tensors.items()}
    _refuse_overflow(tensors, types)
    fields = {
        "general.type": "model", "general.name": out.stem, "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        f"{architecture}.vocab_size": config.vocab_size,
        **{f"{architecture}.{key}": value for key, value in ARCHITECTURES[architecture].table.write(config).items()},
        **vocabulary, "mmcli.version": __version__, SOURCE_KEY: fingerprint(source),
    }  # fmt: skip
    with atomic_file(out) as beside:
        report.note(f"writing {len(tensors)} tensors")
        _write(beside, architecture, fields, tensors, types)
        report.note("reading it back")
        file = open_gguf(beside)
        _compare(file, tensors, types, config, architecture)
        trips = compare_tokenizers(gguf_tokenizer(out, file.fields), tokenizer, held_out_texts())
        after = held_out_loss(build_gguf_model(file), tokenizer)
        refuse_rise(before, after, PERPLEXITY_LIMITS[dtype], dtype, "q8_0" if dtype == "q4_0" else "f32")
        del file  # Windows renames no file that is mapped
    modelfile = write_modelfile(out, tokenizer, config.max_seq_len)
    counts = dict(Counter(kind.name.lower() for kind in types.values()))
    return GgufExport(out, modelfile, architecture, dtype, out.stat().st_size, counts, trips, before, after)


def is_export_of(file: Path, source: Path) -> bool:
    """Whether a GGUF file is there and is an export of the model in `source` as it is now."""
    try:
        return file.is_file() and open_gguf(file).fields.get(SOURCE_KEY) == fingerprint(source)
    except UserError:  # damaged, or the package gguf is missing
        return False


def _refuse_foreign(out: Path) -> None:
    """Raise UserError if `out` is not a name for a GGUF file, or is anything but an earlier export."""
    if out.suffix != ".gguf":
        raise UserError(f"{out} does not end in .gguf", "give --out a file, such as model.gguf")
    if not out.exists():
        return
    try:
        earlier = out.is_file() and SOURCE_KEY in open_gguf(out).fields
    except UserError:
        earlier = False
    if not earlier:
        raise UserError(f"{out} exists and is not an export of mmcli", "give --out a new file")


def _tensors(model: Transformer, architecture: str) -> dict[str, Tensor]:
    """The tensors of the file by their names there, in fp32."""
    config = model.config
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if ARCHITECTURES[architecture].adjacent_rotary:
        state = to_neighbours(state, config)
    tensors = {NAMES.to_disk(name): each for name, each in disk_tensors(state, config, STACKED).items()}
    factors = rotary_factors(config)
    return tensors if factors is None else {**tensors, ROTARY_FACTORS: factors}


def _type_of(name: str, tensor: Tensor, dtype: GgufDtype) -> GGMLQuantizationType:
    """The type in which a tensor is stored, as llama.cpp's converter chooses it."""
    from gguf import GGMLQuantizationType as Quant

    if tensor.dim() == 1 or ".ffn_gate_inp." in name:
        return Quant.F32
    if dtype in ("q8_0", "q4_0") and tensor.shape[-1] % BLOCK:
        return Quant.F16
    if dtype == "q4_0" and name in ("token_embd.weight", "output.weight"):
        return Quant.Q8_0
    return Quant[dtype.upper()]


def _refuse_overflow(tensors: Mapping[str, Tensor], types: Mapping[str, GGMLQuantizationType]) -> None:
    for name, tensor in tensors.items():
        most = torch.finfo(torch.float16).max if types[name].name == "F16" else torch.finfo(torch.bfloat16).max
        if not bool((tensor.abs() <= most).all()):  # NaN is refused too
            what = f"{name} has values that {types[name].name.lower()} cannot hold (at most {most:g}), or not finite"
            raise UserError(what, "export with --dtype bf16 or f32")


def _write(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    types: Mapping[str, GGMLQuantizationType],
) -> None:
    from gguf import GGMLQuantizationType as Quant
    from gguf import GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    try:
        for key, value in fields.items():
            _add_field(writer, key, value)
        for name, tensor in tensors.items():
            stored, kind = quantize(tensor.contiguous().numpy(), types[name]), types[name]
            writer.add_tensor(name, stored, raw_dtype=None if kind in (Quant.F32, Quant.F16) else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_field(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _compare(
    file: GgufFile,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, GGMLQuantizationType],
    config: ModelConfig,
    architecture: str,
) -> None:
    """Hold the file against what was to be written.

    Raises:
        MmcliError: other metadata, or a tensor that differs by more than its type rounds.
    """
    for key, value in ARCHITECTURES[architecture].table.write(config).items():
        found = file.fields.get(f"{architecture}.{key}")
        if found != (float(np.float32(value)) if isinstance(value, float) else value):
            raise MmcliError(f"the exported {architecture}.{key} reads back as {found!r}, not {value!r}", REPORT)
    if set(file.weights.entries) != set(tensors):
        raise MmcliError("the exported file holds other tensors than the model", REPORT)
    for name, tensor in tensors.items():
        if not _is_rounded(tensor, file.weights.entries[name].read(), types[name].name):
            raise MmcliError(f"the exported {name} reads back as other numbers", REPORT)


def _is_rounded(tensor: Tensor, found: Tensor, kind: str) -> bool:
    """True if `found` is `tensor` within the rounding of its type."""
    if kind in ("F32", "F16", "BF16"):
        exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return torch.equal(found, tensor.to(exact).float())
    blocks, others = tensor.reshape(-1, BLOCK), found.reshape(-1, BLOCK)
    most = blocks.abs().amax(dim=1) * ROUNDING[kind] + SMALLEST
    return found.shape == tensor.shape and bool(((blocks - others).abs().amax(dim=1) <= most).all())
