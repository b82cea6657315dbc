"""The files for phones: the graph in ORT format, the operators of a reduced build, a report on accelerators."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from mmcli.errors import MmcliError, UserError
from mmcli.export.locate import Dtype, graph_bytes
from mmcli.export.onnx_folder import ONE_FILE_BYTES
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.onnx_session import GRAPH_FILE, INTEGER_PRODUCTS

ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"  # for the option --include_ops_by_config of ONNX Runtime's build
REPORT_FILE = "mobile_usability.txt"
NOT_FOR_PHONES = ["NchwcTransformer"]  # a layout of x86 processors
PROMPT_TOKENS, NEW_TOKENS = 12, 8
TOLERANCE = 1e-4  # times the standard deviation of the logits where that is above 1


def refuse_half(dtype: Dtype) -> None:
    """Raise UserError for fp16: matrices are widened before a graph is stored in ORT format."""
    if dtype == "fp16":
        what = "--target mobile --dtype fp16: an .ort file would hold the weights in fp32"
        raise UserError(what, "give --dtype int8 or int4, which are smaller, or fp32")


def add_ort_format(folder: Path) -> None:
    """Add `model.ort`, `required_operators.config` and `mobile_usability.txt` to an export.

    Raises:
        UserError: the weights are too large for an .ort file.
        MmcliError: `model.ort` does not compute what `model.onnx` computes.
    """
    if graph_bytes(folder) > ONE_FILE_BYTES:
        raise UserError("the weights are above 1.9 GB, more than an .ort file holds", "give --dtype int8 or int4")
    _convert(folder / GRAPH_FILE, folder / ORT_FILE)
    _compare(folder)
    (folder / OPERATORS_FILE).write_text(required_operators(folder / ORT_FILE), encoding="utf-8")
    (folder / REPORT_FILE).write_text(usability(folder / GRAPH_FILE), encoding="utf-8")


def _convert(graph: Path, out: Path) -> None:
    """Optimize the graph for any processor, and store it as ONNX Runtime holds it in memory.

    Constants are folded, which a phone then need not do: what is stored in fp16 (scales) gets fp32, and rotary tables
    are stored. Without that, 4 bits come out wrong: MatMulNBits wants scales that are constants.
    """
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(out)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry(*INTEGER_PRODUCTS)
    options.log_severity_level = 4  # failures come as exceptions
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(graph), options, providers=providers, disabled_optimizers=NOT_FOR_PHONES)


def _compare(folder: Path) -> None:
    engines = [load_onnx_engine(folder, graph=folder / name) for name in (GRAPH_FILE, ORT_FILE)]
    length = min(PROMPT_TOKENS, engines[0].max_len - NEW_TOKENS) if engines[0].max_len > NEW_TOKENS else 1
    prompt = [number % engines[0].vocab_size for number in range(length)]
    expected, found = (engine.prefill(0, prompt) for engine in engines)
    for _ in range(min(NEW_TOKENS, engines[0].max_len - length)):
        if not np.abs(expected - found).max() <= TOLERANCE * max(1.0, float(expected.std())):
            what = f"{ORT_FILE} does not compute what {GRAPH_FILE} computes"
            raise MmcliError(what, "nothing was kept; export it with --target cpu, whose graph phones load too")
        token = int(expected.argmax())
        expected, found = (engine.decode([0], [token])[0] for engine in engines)


def required_operators(graph: Path) -> str:
    """The operators and their types, in the form that the build of ONNX Runtime reads."""
    with _root_logger_kept():
        from onnxruntime.tools.ort_format_model import create_config_from_models
    out = graph.with_name(OPERATORS_FILE)
    create_config_from_models([graph], out, True)
    return out.read_text(encoding="utf-8").replace(str(graph), graph.name)


def usability(graph: Path) -> str:
    """What ONNX Runtime's own checker says about NNAPI (Android) and Core ML (iOS)."""
    written = io.StringIO()
    log = logging.Logger("mmcli.mobile", logging.INFO)
    log.addHandler(logging.StreamHandler(written))
    with _root_logger_kept():
        from onnxruntime.tools.mobile_helpers.usability_checker import analyze_model
    analyze_model(graph, logger=log)
    return written.getvalue().replace(str(graph), graph.name).strip() + "\n"


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """ONNX Runtime's tools give the root logger a handler as they are imported; it goes again."""
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
