"""The layout in which transformers.js finds a model: configuration and tokenizer at the top, the graph in `onnx/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmcli.errors import UserError
from mmcli.export.locate import WEB_FOLDER, Dtype
from mmcli.files import write_json
from mmcli.generate.onnx_session import GRAPH_FILE

# By the format of the matrices: what transformers.js calls it, and the name of its graph there.
WEB_DTYPES: Mapping[Dtype, tuple[str, str]] = {
    "fp32": ("fp32", "model.onnx"),
    "fp16": ("fp16", "model_fp16.onnx"),
    "int8": ("q8", "model_quantized.onnx"),
    "int4": ("q4", "model_q4.onnx"),
}


def lay_out(folder: Path, dtype: Dtype) -> None:
    """Move the graph of an export to where transformers.js looks for it, and tell it the format to take.

    Raises:
        UserError: the weights are in a file of their own.
    """
    if [path.name for path in folder.glob(GRAPH_FILE + "*")] != [GRAPH_FILE]:
        what = "the model's weights are above 1.9 GB, more than a browser loads"
        raise UserError(what, "export it with --dtype int8 or int4, or serve it: mmcli serve")
    name, graph = WEB_DTYPES[dtype]
    (folder / WEB_FOLDER).mkdir()
    (folder / GRAPH_FILE).rename(folder / WEB_FOLDER / graph)
    (folder / "genai_config.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "transformers.js_config": {"dtype": name}})
