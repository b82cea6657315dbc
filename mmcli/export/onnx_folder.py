"""The files of an ONNX export: graph, tokenizer with its chat template, configuration, genai_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from mmcli.export.genai import genai_config
from mmcli.export.locate import Ops
from mmcli.generate.onnx_session import GRAPH_FILE
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_config import read_model_config, to_hf_config
from mmcli.model.formats.hf_folder import GENERATION, generation_ids
from mmcli.text.tokenizer import Tokenizer

ONE_FILE_BYTES = 1_900_000_000  # a protobuf file ends at 2 GiB: above this the weights go into a file of their own
WEIGHTS_FILE = GRAPH_FILE + ".data"
OF_THE_SOURCE = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"}  # not of the ModelConfig


def write_graph(folder: Path, graph: onnx.ModelProto) -> None:
    """`model.onnx`, and `model.onnx.data` beside it where the weights are too many for one file."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights > ONE_FILE_BYTES:
        onnx.save_model(
            graph, folder / GRAPH_FILE, save_as_external_data=True, all_tensors_to_one_file=True, location=WEIGHTS_FILE
        )
    else:
        onnx.save_model(graph, folder / GRAPH_FILE)


def write_companions(
    folder: Path,
    source: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    ops: Ops = "fused",
    stage: str | None = None,
) -> None:
    """Everything beside the graph.

    Args:
        source: the model folder that is exported; its config.json and generation_config.json are taken over.
        config: of the model with the exported context.
        ops: of the graph.
        stage: of the run that the model came from, stored in config.json: it tells a chat model from a base model.
    """
    tokenizer.save(folder)
    document = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config != read_model_config(source):
        written = to_hf_config(config, bos_id=None, eos_id=None, pad_id=None)
        document |= {name: value for name, value in written.items() if name not in OF_THE_SOURCE}
    if stage is not None:
        document["mmcli_stage"] = stage
    _write_json(folder / "config.json", document)
    _write_json(folder / GENERATION, {**_read_table(source / GENERATION), **generation_ids(tokenizer)})
    _write_json(folder / "genai_config.json", genai_config(config, tokenizer, ops))


def _read_table(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
