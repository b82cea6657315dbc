"""A transformers folder: config.json, safetensors or pytorch_model.bin, tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mmcli.errors import UserError
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import INDEX, WEIGHTS
from mmcli.model.formats.minimind import drop_buffers, is_first_release, rename_first_release
from mmcli.model.formats.weights import (
    Weights,
    build_model,
    read_index,
    read_pickled,
    read_safetensors,
    to_halves,
)
from mmcli.model.transformer import Transformer

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Tables that older versions of transformers stored with the parameters.
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


def read_folder(folder: Path) -> Transformer:
    """The model of a transformers folder of a family in `formats.families`, in the type of its weights.

    Raises:
        UserError: no weights, a field of config.json or a tensor that mmcli does not know, by name.
    """
    config = read_model_config(folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = open_weights(folder)
    weights = weights.without([name for name in weights.entries if BUFFERS.search(name)])
    model_type = fields["model_type"]
    if model_type == "minimind":
        first = is_first_release(weights)
        weights = to_halves(rename_first_release(weights), config) if first else drop_buffers(weights)
    if model_type == "gpt2" and "wte.weight" in weights.entries:  # saved without its head, as gpt2 itself is
        weights = weights.renamed(lambda name: name if name.startswith("lm_head.") else f"transformer.{name}")
    return build_model(weights, config, model_type)


def open_weights(folder: Path) -> Weights:
    """The tensors of a folder: safetensors where there are any, else pytorch_model.bin; in one file or in shards.

    Raises:
        UserError: there are none, or a file is missing or damaged.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder, [folder / WEIGHTS])
    if (folder / INDEX).is_file():
        return read_safetensors(folder, read_index(folder / INDEX))
    if (folder / PICKLED).is_file():
        return read_pickled(folder, [folder / PICKLED])
    if (folder / PICKLED_INDEX).is_file():
        return read_pickled(folder, read_index(folder / PICKLED_INDEX))
    raise UserError(f"{folder} has no {WEIGHTS}, {INDEX} or {PICKLED}", "give a folder with the model's weights")
