"""`config.json`: ModelConfig to Hugging Face fields and back. No torch here.

A config is written in the first family that can say all of it, so that other programs compute the same function; the
key `"mmcli"` holds every ModelConfig field beside it, so that reading back loses nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from mmcli.config import Layer, convert, leaves, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import (
    ACTIVATIONS,
    GPT2,
    MINIMIND,
    MINIMIND_3,
    MINIMIND_FIRST,
    MIXTRAL,
    PHI,
    QWEN3,
    QWEN3_MOE,
    READABLE,
    REQUIRED,
    Family,
    family_of,
)

ACTIVATIONS_READ = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "phi": ("resid_pdrop", "embd_pdrop", "attention_dropout"),
}
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": None, "mscale_all_dim": None, "truncate": True}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
NOT_COMPARED = {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "mmcli"}


def to_hf_config(
    config: ModelConfig, *, bos_id: int | None, eos_id: int | None, pad_id: int | None, dtype: str = "float32"
) -> dict[str, Any]:
    """The document of `config.json`, read by transformers 4 and 5, vLLM and llama.cpp's converter (see `hf_family`).

    `dtype` is the weights' type in the folder ("float32", "bfloat16", "float16").
    """
    family = family_of(config)
    document: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    document |= {name: getattr(config, attribute) for name, (attribute, _) in family.fields.items()}
    document |= family.fixed
    if config.position == "rope":
        document |= _write_rope(config, family)
    document |= _write_extras(config, family)
    document |= {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    document |= {"dtype": dtype, "torch_dtype": dtype}  # transformers 5, and its older name
    return {**document, "mmcli": dataclasses.asdict(config)}


def _write_extras(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Fields that do not stand for one attribute each."""
    if family is GPT2:
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        return {**dropouts, "activation_function": ACTIVATIONS[config.mlp]}
    if family is PHI:
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attention_dropout"), config.dropout)
        return {**dropouts, "hidden_act": ACTIVATIONS[config.mlp]}
    if family is MINIMIND:
        return {"n_shared_experts": config.n_shared}
    extras: dict[str, Any] = {"attention_dropout": config.dropout}
    if family in (QWEN3, QWEN3_MOE):
        windowed = config.sliding_window is not None
        extras |= {"use_sliding_window": windowed, "sliding_window": config.sliding_window}
        if family is QWEN3:
            extras |= {"max_window_layers": 0 if windowed else config.n_layers}
        else:
            extras |= {"intermediate_size": config.ffn_dim}
    return extras


def _write_rope(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Rotary settings in both forms: `rope_parameters` (transformers 5), `rope_theta` + `rope_scaling` (older)."""
    if family is MINIMIND:
        return {"rope_theta": config.rope_theta}
    partial = {"partial_rotary_factor": config.rotary_fraction} if family is PHI else {}
    scaling: dict[str, Any] | None = None
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling in ("yarn", "llama3"):
        scaling = {**(scaling or {}), "original_max_position_embeddings": config.original_seq_len}
    if config.rope_scaling == "llama3":
        scaling = {**(scaling or {}), **LLAMA3}
    parameters = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"}), **partial}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters, **partial}


def read_model_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a model folder: from its key "mmcli", which must agree with the Hugging Face fields, or,
    without that key, from those fields (llama, mistral, qwen3, qwen3_moe, mixtral, gpt2, phi, minimind).

    Dropout is taken from Hugging Face fields only where the family means the same by it (all of embedding,
    attention and residual), else it is 0: it is a choice of training, and does not change what a model answers.

    Raises:
        UserError: no config.json, not JSON, a field that is missing, contradicts the key, or is not supported.
    """
    path = folder / "config.json"
    fields = _read_json(path)
    if "mmcli" not in fields:
        return _from_fields(fields, path)
    own = fields["mmcli"]
    if not isinstance(own, dict):
        raise UserError(f'{path}: "mmcli" is not a table', 'delete the key "mmcli" to go by the other fields')
    config = resolve(ModelConfig, [Layer(f"{path}, mmcli", own)]).config
    expected = to_hf_config(config, bos_id=None, eos_id=None, pad_id=None)
    for name, value in expected.items():
        if name not in NOT_COMPARED and name in fields and not _agree(value, fields[name]):
            raise UserError(
                f'{path}: {name} = {json.dumps(fields[name])}, but its key "mmcli" gives {json.dumps(value)}',
                'make the two agree, or delete the key "mmcli" to go by the other fields',
            )
    return config


def _agree(expected: Any, found: Any) -> bool:
    """Equal; in a table, every expected entry that is there is equal (transformers adds entries when it saves)."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(_agree(value, found[name]) for name, value in expected.items() if name in found)
    return bool(expected == found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a folder with config.json in it") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path} is not JSON: {error}", "restore the file from where the model came from") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} is not a JSON table", "restore the file from where the model came from")
    return fields


def _from_fields(fields: dict[str, Any], path: Path) -> ModelConfig:
    """The config that another program's fields describe."""
    family = _detect(fields, path)
    _refuse_unsupported(fields, family, path)
    values = {name: value for name, value in family.implied.items() if name not in ("n_shared", "gated")}
    if family is QWEN3_MOE and "num_experts" not in fields and "num_local_experts" in fields:
        fields = {**fields, "num_experts": fields["num_local_experts"]}  # the name that transformers 5 writes
    values |= _read_table(fields, family, path)
    if family.model_type in DROPOUTS:
        values["mlp"] = _read_activation(fields, family, path)
        first, *others = (fields.get(name, 0.1 if family is GPT2 else 0.0) for name in DROPOUTS[family.model_type])
        values["dropout"] = first if all(other == first for other in others) else 0.0
    if family in (QWEN3, QWEN3_MOE):
        values["sliding_window"] = _read_window(fields, family, values["n_layers"], path)
    if family in (QWEN3_MOE, MIXTRAL):
        values["n_shared_experts"] = 0
    if family is MINIMIND_3 and values["use_moe"]:
        values["hidden_dim"] = fields.get("moe_intermediate_size", values["hidden_dim"])
    if family in (MINIMIND, MINIMIND_FIRST) and values["num_experts_per_tok"] == 1:
        values["norm_topk_prob"] = False  # MiniMind2's code does not renormalise a single expert's weight
    if values["position"] == "rope":
        values |= _read_rope(fields, family, values["max_seq_len"], path)
    if values.get("head_dim") and values["head_dim"] * values["n_heads"] == values["dim"]:
        values["head_dim"] = None
    return resolve(ModelConfig, [Layer(str(path), values)]).config


def _detect(fields: dict[str, Any], path: Path) -> Family:
    kind = fields.get("model_type")
    if kind == "minimind" and "dim" in fields:
        return MINIMIND_FIRST
    if kind == "minimind" and ("num_experts" in fields or "router_aux_loss_coef" in fields):
        return MINIMIND_3
    for family in READABLE:
        if family.model_type == kind:
            return family
    known = ", ".join(family.model_type for family in READABLE)
    raise UserError(f"{path}: model_type = {json.dumps(kind)} is not supported", f"give a model of: {known}")


def _unsupported(path: Path, name: str, value: Any, supported: str) -> UserError:
    return UserError(f"{path}: {name} = {json.dumps(value)} is not supported", f"mmcli runs models with {supported}")


def _refuse_unsupported(fields: dict[str, Any], family: Family, path: Path) -> None:
    if fields.get("quantization_config") is not None:
        method = fields["quantization_config"]
        raise _unsupported(path, "quantization_config", method, "plain fp32, fp16 or bf16 weights")
    for name, value in family.fixed.items():
        if fields.get(name, value) != value:
            raise _unsupported(path, name, fields[name], f"{name} = {json.dumps(value)}")
    kinds = fields.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != kinds[0] for kind in kinds):
        raise _unsupported(path, "layer_types", kinds, "the same attention in every layer")


def _read_table(fields: dict[str, Any], family: Family, path: Path) -> dict[str, Any]:
    """The fields that stand for one ModelConfig attribute each."""
    types = {leaf.key: leaf for leaf in leaves(ModelConfig)}
    values: dict[str, Any] = {}
    for name, (attribute, default) in family.fields.items():
        key = {"ffn_dim": "hidden_dim", "d_head": "head_dim"}.get(attribute, attribute)
        raw = fields.get(name)
        if raw is None and default is REQUIRED:
            raise UserError(f"{path} has no {name}", f"restore the field: {types[key].doc}")
        if raw is None and name in fields and key in ("sliding_window", "n_shared_experts", "head_dim"):
            value: Any = 0 if key == "n_shared_experts" else None  # null there means: none of it
        elif raw is None:
            value = default
        else:
            value = convert(raw, dataclasses.replace(types[key], key=name), str(path))
        if key in values and values[key] != value:
            raise _unsupported(path, name, raw, f"{name} = {json.dumps(values[key])}, as in its attention")
        values[key] = value
    values["n_kv_heads"] = values.get("n_kv_heads") or values["n_heads"]
    return values


def _read_activation(fields: dict[str, Any], family: Family, path: Path) -> str:
    name = "activation_function" if family is GPT2 else "hidden_act"
    found = fields.get(name, "gelu_new")
    if not isinstance(found, str) or found not in ACTIVATIONS_READ:
        raise _unsupported(path, name, found, " or ".join(ACTIVATIONS_READ))
    return ACTIVATIONS_READ[found]


def _number(value: Any, name: str, path: Path) -> float:
    if not isinstance(value, int | float):
        raise UserError(f"{path}: {name} = {json.dumps(value)} is not a number", f"restore {name}")
    return value


def _read_window(fields: dict[str, Any], family: Family, n_layers: int, path: Path) -> Any:
    """Qwen3's sliding window: on by a switch, and in `qwen3` only in layers from `max_window_layers` on."""
    if not fields.get("use_sliding_window", False):
        return None
    if fields.get("layer_types"):
        full = fields["layer_types"][0] == "full_attention"
    else:
        first = _number(fields.get("max_window_layers", 28), "max_window_layers", path) if family is QWEN3 else 0
        full = first >= n_layers
        if 0 < first < n_layers:
            raise _unsupported(path, "max_window_layers", first, "the same attention in every layer")
    return None if full else fields.get("sliding_window", 4096)


def _read_rope(fields: dict[str, Any], family: Family, max_seq_len: int, path: Path) -> dict[str, Any]:
    """Rotary settings from either form (see `_write_rope`)."""
    parameters: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        table = fields.get(name) or {}
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} = {json.dumps(table)} is not a table", f"restore {name}, or delete it")
        parameters |= table
    if any(isinstance(value, dict) for value in parameters.values()):
        raise _unsupported(path, "rope_parameters", parameters, "the same rotary settings in every layer")
    top = fields.get("rope_theta")
    theta = parameters.get("rope_theta", family.rope_theta if top is None else top)
    if top is not None and top != theta:
        raise UserError(
            f"{path}: rope_theta = {top}, but its rope_parameters give {theta}", "make the two agree, or delete one"
        )
    fraction = parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if family is not PHI and fraction not in (None, 1.0):
        raise _unsupported(path, "partial_rotary_factor", fraction, f"1.0 in a model_type {family.model_type}")
    values: dict[str, Any] = {"rope_theta": theta}
    if family is PHI:
        values["rotary_fraction"] = 0.5 if fraction is None else fraction
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return values
    if kind not in ("linear", "yarn", "llama3"):
        raise _unsupported(path, "rope_type", kind, 'rope_type "default", "linear", "yarn" or "llama3"')
    factor = _number(parameters.get("factor"), "rope_scaling.factor", path)
    if factor < 1:
        raise _unsupported(path, "rope_scaling.factor", factor, "a factor of 1 or more")
    values |= {"rope_scaling": kind, "rope_factor": factor}
    if kind != "linear":
        fixed = LLAMA3 if kind == "llama3" else {**YARN, "attention_factor": 0.1 * math.log(factor) + 1.0}
        _check_fixed(parameters, fixed, path)
        given = parameters.get("original_max_position_embeddings") or max_seq_len
        length = int(_number(given, "original_max_position_embeddings", path))
        values["rope_original_seq_len"] = None if length == int(max_seq_len / factor) else length
    return values


def _check_fixed(parameters: dict[str, Any], fixed: dict[str, Any], path: Path) -> None:
    """Refuse a rotary parameter with another value than the one that mmcli computes with."""
    for name, value in fixed.items():
        found = parameters.get(name)
        if found is not None and (value is None or not math.isclose(_number(found, name, path), value, rel_tol=1e-6)):
            raise _unsupported(path, f"rope_scaling.{name}", found, f"{name} = {json.dumps(value)}")
