"""A GGUF file (llama.cpp's format): its metadata as a configuration, its tensors dequantized.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcli.config import Layer, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.gguf_bounds import check_counts
from mmcli.model.formats.gguf_table import ARCHITECTURES, NAMES, OTHER_FILE, ROTARY_FACTORS, STACKED, Metadata
from mmcli.model.formats.parameters import build_model, to_halves
from mmcli.model.formats.weights import Entry, Weights
from mmcli.model.transformer import Transformer


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file."""

    path: Path
    fields: Mapping[str, Any]  # metadata by key, as Python values
    weights: Weights  # in the file's names; each tensor is dequantized to fp32 when it is read


def open_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a GGUF file.

    Raises:
        UserError: the package `gguf` is not installed; the file is damaged, in parts, or of a type it cannot read.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"reading {path} needs the package gguf", "install it: pip install 'mmcli[gguf]'") from None
    check_counts(path)
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        entries = {each.name: _entry(path, each) for each in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged or not a GGUF file: {error}", "download it again") from None
    if fields.get("split.count", 1) > 1:
        what = f"{path}: split.count = {fields['split.count']}: the model is split into several files"
        raise UserError(what, "join them first: llama-gguf-split --merge")
    return GgufFile(path, fields, Weights(str(path), entries))


def _entry(path: Path, tensor: Any) -> Entry:
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read() -> Tensor:
        from gguf.quants import dequantize

        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            what = (
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the package gguf cannot dequantize"
            )
            raise UserError(what, "take a file of another quantization, such as Q8_0") from None
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape)

    return Entry(shape, torch.float32, read)


def build_gguf_model(file: GgufFile) -> Transformer:
    """The model of a GGUF file, in fp32.

    Raises:
        UserError: an architecture, a field or a tensor that mmcli does not know, by name.
    """
    config = read_gguf_config(file)
    weights = file.weights.without([ROTARY_FACTORS]).renamed(NAMES.to_memory)
    if ARCHITECTURES[file.fields["general.architecture"]].adjacent_rotary:
        weights = to_halves(weights, config)
    return build_model(weights, config, STACKED)


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """The configuration in a GGUF file's metadata.

    Raises:
        UserError: a field is missing, or has a value that mmcli cannot compute with.
    """
    name = file.fields.get("general.architecture")
    if name not in ARCHITECTURES:
        raise Metadata(file.path, "", file.fields, file.weights).unsupported("general.architecture", OTHER_FILE)
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in file.fields.items() if key.startswith(prefix)}
    values = ARCHITECTURES[name].read(Metadata(file.path, prefix, own, file.weights))
    return resolve(ModelConfig, [Layer(str(file.path), values)]).config
