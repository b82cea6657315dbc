"""A model folder: `config.json`, `model.safetensors`, tokenizer, `generation_config.json`, model card.

Safetensors and JSON only: nothing in a folder is ever unpickled. The names are those of the model's Hugging Face family
(`hf_names`), so that a folder of such a family loads unchanged in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_config import read_model_config, to_hf_config
from mmcli.model.formats.hf_names import layout, to_disk, to_memory
from mmcli.model.transformer import Transformer

if TYPE_CHECKING:
    from mmcli.text.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN = 5  # names in an error before "and N more"


def save_model(
    folder: Path,
    model: Transformer,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a complete model folder; the caller writes beside the final place, then renames.

    Args:
        folder: made if missing; files of these names are replaced.
        model: its weights are written in their own type.
        tokenizer: its files and its bos, eos and pad ids go in too.
        extra: facts for the model card, one line each (the run, the data, tokens seen).
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    dtype = str(model.head_weight.dtype).removeprefix("torch.")
    hf_config = to_hf_config(config, dtype=dtype, **ids)
    tensors = disk_tensors(model.state_dict(), config, hf_config["model_type"])
    save_file({name: each.cpu() for name, each in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", hf_config)
    generation: dict[str, Any] = {f"{name}_token_id": ids[f"{name}_id"] for name in ("bos", "eos", "pad")}
    if len(tokenizer.definition.more_eos_ids) > 1:  # a model with several ends of a turn (Llama 3) keeps them all
        generation["eos_token_id"] = list(tokenizer.definition.more_eos_ids)
    _write_json(
        folder / "generation_config.json", {key: value for key, value in generation.items() if value is not None}
    )
    tokenizer.save(folder)
    (folder / "README.md").write_text(_model_card(model, config, hf_config, extra or {}), encoding="utf-8")


def load_model(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a folder, in `dtype`, ready for use (eval mode).

    Raises:
        UserError: no weights, no safetensors, or tensors that are missing, unexpected or of another shape, by name.
    """
    config = read_model_config(folder)
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    with torch.device("meta"):
        model = Transformer(config)
    skeleton = model.state_dict()
    wanted = {name: each.shape for name, each in disk_tensors(skeleton, config, model_type).items()}
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        _drop_tied_head(folder, files, config, model_type)
        misfits = describe_misfits(wanted, {name: file.get_slice(name).get_shape() for name, file in files.items()})
        if misfits:
            what = f"the weights of {folder} do not fit its config.json; {misfits}"
            raise UserError(what, "restore the folder: its two files are of different models")
        state: dict[str, Tensor] = {}
        for stored in layout(skeleton, config, model_type):
            parts = [files[name].get_tensor(name).to(device, dtype, copy=True) for name in stored.disk]
            state.update(zip(stored.memory, to_memory(stored.form, parts), strict=True))
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()


def disk_tensors(state: Mapping[str, Tensor], config: ModelConfig, model_type: str) -> dict[str, Tensor]:
    """A model's state dict as it lies on disk, under the names of the family `model_type`."""
    tensors: dict[str, Tensor] = {}
    for stored in layout(state, config, model_type):
        parts = to_disk(stored.form, [state[name].detach() for name in stored.memory])
        tensors.update(zip(stored.disk, parts, strict=True))
    return tensors


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Which open safetensors file holds each tensor: the one file, or the shards of an index."""
    paths = [folder / WEIGHTS]
    if not paths[0].is_file() and (folder / INDEX).is_file():
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        paths = [folder / name for name in sorted(set(shards))]
    files: dict[str, Any] = {}
    for path in paths:
        if not path.is_file():
            fix = f"give a model folder; only {path.suffix} is read"
            raise UserError(f"{folder} has no {path.name}", fix)
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise UserError(
                f"{path} is damaged or no safetensors file: {error}", "restore it, or train again"
            ) from None
        files.update(dict.fromkeys(file.keys(), file))
    return files


def _drop_tied_head(folder: Path, files: dict[str, Any], config: ModelConfig, model_type: str) -> None:
    """Some programs write the tied matrix under both names; that is fine as long as both are the same."""
    (tied,), head = layout(["model.embed_tokens.weight"], config, model_type)[0].disk, "lm_head.weight"
    if not config.tie_embeddings or tied not in files or head not in files:
        return
    if not torch.equal(files[tied].get_tensor(tied), files[head].get_tensor(head)):
        what = f"{folder} has a {head} of its own, but its config.json says that it is {tied}"
        raise UserError(what, "set tie_word_embeddings to false in config.json (and in its mmcli table)")
    del files[head]


def describe_misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, unexpected or of another shape among the tensors `found`, by name; empty if all fit."""
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    lines = []
    for problem, names in problems.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        if names:
            lines.append(f"{problem}: {', '.join(names[:SHOWN])}{more}")
    return "; ".join(lines)


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
