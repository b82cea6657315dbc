"""HF-format folders, ours and others': `config.json`, weights, tokenizer, `generation_config.json`, model card.

What is written is safetensors, JSON and text: nothing in a run's folder is ever unpickled. The names are those of the
model's Hugging Face family (`families`), so that a folder of such a family loads unchanged in transformers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from mmcli.errors import UserError
from mmcli.find import is_reward_model
from mmcli.manifest import refuse_damaged
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import GPT2, Family, family_of
from mmcli.model.formats.hf_config import read_config_and_family, to_hf_config
from mmcli.model.formats.minimind import convert_names
from mmcli.model.formats.parameters import build_model, disk_tensors
from mmcli.model.formats.weights import INDEX, WEIGHTS, Weights, open_weights
from mmcli.model.transformer import Transformer
from mmcli.text.chat import stop_ids

if TYPE_CHECKING:
    from mmcli.text.tokenizer import Tokenizer

GENERATION = "generation_config.json"
# Tables that older versions of transformers stored with the parameters.
BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


def save_model(
    folder: Path,
    model: Transformer,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    extra: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> None:
    """Write a complete model folder; the caller writes beside the final place, then renames.

    Args:
        folder: made if missing; files of these names are replaced.
        model: its weights are written in their own type.
        tokenizer: its files and its bos, eos and pad ids go in too.
        extra: facts for the model card, one line each (the run, the data, tokens seen).
        family: one that holds all of `config`; None: the first that does.
    """
    family = family or family_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    dtype = str(model.head_weight.dtype).removeprefix("torch.")
    hf_config = to_hf_config(config, dtype=dtype, family=family, **ids)
    _write_json(folder / "config.json", hf_config)
    tensors = disk_tensors(model.state_dict(), config, family.layout)
    save_file({name: each.cpu() for name, each in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors makes files that only their owner reads
    _write_json(folder / GENERATION, generation_ids(tokenizer))
    tokenizer.save(folder)
    (folder / "README.md").write_text(_model_card(model, config, hf_config, extra or {}), encoding="utf-8")


def generation_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The token ids of `generation_config.json`; eos_token_id lists every id at which chat ends a reply."""
    first = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    stops = [*first, *sorted(stop_ids(tokenizer).difference(first))]
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
        "pad_token_id": tokenizer.pad_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def load_model(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    pickled: bool = False,
) -> Transformer:
    """The model of a folder of any family in `families`, ready for use (eval mode).

    Args:
        dtype: of its parameters; None: that of its weights, fp32 where they differ.
        pickled: read pytorch_model.bin too, of which nothing but tensors is unpickled.

    Raises:
        UserError: no weights, a reward model, a file that differs from its folder's manifest, a field of config.json
            that mmcli does not know, or tensors that are missing, unexpected or of another shape or type, by name.
    """
    if is_reward_model(folder):
        raise UserError(f"{folder} is a reward model: it scores replies and writes none", "give a language model")
    config, family = read_config_and_family(folder)
    refuse_damaged(folder, [WEIGHTS, INDEX])
    weights = _current_names(open_weights(folder, pickled=pickled), config, family)
    return build_model(weights, config, family.layout, device=device, dtype=dtype)


def _current_names(weights: Weights, config: ModelConfig, family: Family) -> Weights:
    """Tensors of older versions of a family as the current one has them."""
    weights = weights.without([name for name in weights.entries if BUFFERS.search(name)])
    if family.model_type == "minimind":
        return convert_names(weights, config)
    if family is GPT2 and "wte.weight" in weights.entries:  # saved without its head, as gpt2 itself is
        return weights.renamed(lambda name: name if name.startswith("lm_head.") else f"transformer.{name}")
    return weights


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_card(model: Transformer, config: ModelConfig, hf_config: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    """README.md: what the model is and how to run it."""
    kind = f"{config.n_routed_experts} experts, {config.num_experts_per_tok} a token" if config.use_moe else "dense"
    facts = {
        "Parameters": f"{sum(each.numel() for each in model.parameters()):,}",
        "Shape": f"{config.dim} wide, {config.n_layers} layers, {config.n_heads} heads, {kind}",
        "Vocabulary": f"{config.vocab_size:,} tokens",
        "Context": f"{config.max_seq_len:,} tokens",
        "Format": f"safetensors, {hf_config['dtype']}, names of `{hf_config['model_type']}`",
        **extra,
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    head = "---\npipeline_tag: text-generation\ntags:\n- mmcli\n---\n\n# A language model trained with mmcli\n\n"
    return f"{head}| | |\n|---|---|\n{table}\nTalk to it: `mmcli chat .` in this folder.\n"
