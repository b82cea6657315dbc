"""`config.json`: ModelConfig to Hugging Face fields and back. No torch here.

A config is written in the first family that holds all of it, so that other programs compute the same function; the
key `"mmcli"` holds every ModelConfig field beside it, so that reading back loses nothing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mmcli.config import Layer, resolve
from mmcli.errors import UserError
from mmcli.manifest import refuse_damaged
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import MINIMIND_3, MINIMIND_FIRST, READABLE, Family, family_of, written_as
from mmcli.model.formats.fields import Source

NOT_COMPARED = {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "mmcli"}


def to_hf_config(
    config: ModelConfig,
    *,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int | None,
    dtype: str = "float32",
    family: Family | None = None,
) -> dict[str, Any]:
    """The document of `config.json`, read by transformers 4 and 5, vLLM and llama.cpp's converter (see `hf_family`).

    Args:
        dtype: the weights' type in the folder ("float32", "bfloat16", "float16").
        family: one that holds all of `config`; None: the first that does.
    """
    family = family or family_of(config)
    document: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    document |= family.table.write(config)
    document |= {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    document |= {"dtype": dtype, "torch_dtype": dtype}  # transformers 5, and its older name
    return {**document, "mmcli": dataclasses.asdict(config)}


def read_model_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a model folder: from its key "mmcli", which must agree with the Hugging Face fields, or,
    without that key, from those fields (of a family in `families.READABLE`).

    Dropout is taken from Hugging Face fields only where the family means the same by it (all of embedding,
    attention and residual), else it is 0: it is a choice of training, and does not change what a model answers.

    Raises:
        UserError: no config.json, damaged, not JSON, a field that is missing, contradicts the key, or is not supported.
    """
    return read_config_and_family(folder)[0]


def read_config_and_family(folder: Path) -> tuple[ModelConfig, Family]:
    """The same with the family whose names the folder's tensors have."""
    path = folder / "config.json"
    refuse_damaged(folder, [path.name])
    document = _read_json(path)
    if "mmcli" in document:
        return _read_own(document, path)
    family = _detect(document, path)
    return _read_foreign(Source(path, document), family), family


def _read_own(document: dict[str, Any], path: Path) -> tuple[ModelConfig, Family]:
    own = document["mmcli"]
    if not isinstance(own, dict):
        raise UserError(f'{path}: "mmcli" is not a table', 'delete the key "mmcli" to go by the other fields')
    config = resolve(ModelConfig, [Layer(f"{path}, mmcli", own)]).config
    written = written_as(config)
    family = next((each for each in written if each.model_type == document.get("model_type")), written[0])
    expected = to_hf_config(config, bos_id=None, eos_id=None, pad_id=None, family=family)
    for name, value in expected.items():
        if name not in NOT_COMPARED and name in document and not _agree(value, document[name]):
            raise UserError(
                f'{path}: {name} = {json.dumps(document[name])}, but its key "mmcli" gives {json.dumps(value)}',
                'make the two agree, or delete the key "mmcli" to go by the other fields',
            )
    return config, family


def _agree(expected: Any, found: Any) -> bool:
    """Equal; in a table, every expected entry that is there is equal (transformers adds entries when it saves)."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(_agree(value, found[name]) for name, value in expected.items() if name in found)
    return bool(expected == found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a folder with config.json in it") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply", "restore the file from where the model came from") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path} is not JSON: {error}", "restore the file from where the model came from") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is not a JSON table", "restore the file from where the model came from")
    return document


def _read_foreign(source: Source, family: Family) -> ModelConfig:
    """The config that another program's fields describe."""
    method = source.document.get("quantization_config")
    if method is not None:
        raise source.unsupported("quantization_config", method, "plain fp32, fp16 or bf16 weights")
    kinds = source.document.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != kinds[0] for kind in kinds):
        raise source.unsupported("layer_types", kinds, "the same attention in every layer")
    return resolve(ModelConfig, [Layer(str(source.path), family.table.read(source))]).config


def _detect(document: dict[str, Any], path: Path) -> Family:
    kind = document.get("model_type")
    if kind == "minimind" and "dim" in document:
        return MINIMIND_FIRST
    if kind == "minimind" and ("num_experts" in document or "router_aux_loss_coef" in document):
        return MINIMIND_3
    for family in READABLE:
        if family.model_type == kind:
            return family
    known = ", ".join(family.model_type for family in READABLE)
    raise UserError(f"{path}: model_type = {json.dumps(kind)} is not supported", f"give a model of: {known}")
