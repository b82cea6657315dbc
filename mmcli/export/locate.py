"""Exports on disk: their default folders, and whether one is of the model as it is now. No torch here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, get_args

from mmcli.errors import UserError
from mmcli.generate.onnx_session import GRAPH_FILE
from mmcli.run import BEST, ModelRef, Run

Dtype = Literal["fp32", "fp16", "int8", "int4"]  # how an ONNX export stores matrices (`matrices.FORMATS`)
Ops = Literal["fused", "standard"]  # of a graph: ONNX Runtime's own operators, or those of the ONNX standard alone
Target = Literal["cpu", "mobile", "web", "genai"]  # where an ONNX export runs (`targets.FINISH`)
RECORD_FILE = "export.json"  # what was exported and how it was verified
WEB_FOLDER = "onnx"  # of the graph, in an export for the web
SOURCE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def default_folder(ref: ModelRef, dtype: Dtype, target: Target = "cpu", ops: Ops = "fused") -> Path:
    """`RUN/export/onnx-DTYPE[-TARGET][-standard]`, or the same inside a model folder outside of any run.

    Here and below, exports of a run's `best/` have names that begin with `best-`.
    """
    parts = ("onnx", dtype, *([target] if target != "cpu" else []), *([ops] if ops != "fused" else []))
    return _place(ref, "-".join(parts))


def default_hf_folder(ref: ModelRef, dtype: str | None) -> Path:
    """`RUN/export/hf` or `hf-DTYPE`, or the same inside a model folder that is of no run."""
    return _place(ref, f"hf-{dtype}" if dtype else "hf")


def default_gguf_file(ref: ModelRef, dtype: str) -> Path:
    """`RUN/export/NAME-DTYPE.gguf` with the run's name, or `NAME-DTYPE.gguf` inside a model folder of no run."""
    if ref.run is not None:
        return _place(ref, f"{ref.run.name}-{dtype}.gguf")
    return ref.path / f"{ref.path.resolve().name}-{dtype}.gguf"


def default_web_folder(ref: ModelRef, dtype: str) -> Path:
    """`RUN/export/web-DTYPE`, or the same inside a model folder that is of no run."""
    return _place(ref, f"web-{dtype}")


def _place(ref: ModelRef, name: str) -> Path:
    if ref.run is None:
        return ref.path / name
    return ref.run.exports / (f"{BEST}-{name}" if ref.is_best else name)


def card_run(ref: ModelRef) -> Run:
    """The run that the card of a model tells of.

    Raises:
        UserError: no run made the model.
    """
    if ref.run is None:
        what = f"{ref.label} is no run, so a model card cannot tell how it was trained"
        raise UserError(what, "name a run, or export without a card")
    if ref.is_best:
        what = f"a model card tells of the model that a run ended with, not of {ref.label}"
        raise UserError(what, f"name {ref.run.number}, or export without a card")
    return ref.run


def find_export(ref: ModelRef, dtype: Dtype | None = None) -> Path | None:
    """The export of a model: its folder if that is one, else one at a default place that is of these weights.

    Args:
        dtype: the format that it must have; None: any, the newest.
    """
    if (ref.path / GRAPH_FILE).is_file():
        return ref.path
    formats = get_args(Dtype) if dtype is None else (dtype,)
    places = [default_folder(ref, each) for each in formats]
    graphs = [place / GRAPH_FILE for place in places if (place / GRAPH_FILE).is_file()]
    if not graphs:
        return None
    source = fingerprint(ref.path)
    fitting = [graph for graph in graphs if read_record(graph.parent).get("source") == source]
    return max(fitting, key=lambda graph: graph.stat().st_mtime_ns).parent if fitting else None


def graph_file(folder: Path) -> Path:
    """The graph of an export: `model.onnx`, or that in `onnx/`, where web pages look for it."""
    inside = sorted((folder / WEB_FOLDER).glob("*.onnx"))
    return inside[0] if inside and not (folder / GRAPH_FILE).is_file() else folder / GRAPH_FILE


def graph_bytes(folder: Path) -> int:
    """The size of an export's graph with its weights."""
    graph = graph_file(folder)
    return sum(path.stat().st_size for path in graph.parent.glob(graph.name + "*"))


def read_record(folder: Path) -> dict[str, object]:
    """The content of `export.json`; empty if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def refuse_foreign(out: Path, kind: str | None) -> None:
    """Raise UserError if `out` is anything but an earlier export of this kind, which an export may replace."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and (not (out / RECORD_FILE).is_file() or read_record(out).get("format") != kind):
        raise UserError(f"{out} exists and is not an export of this kind", "give --out a new folder")


def fingerprint(model_folder: Path) -> str:
    """SHA-256 (hex) over the files of a model folder that an export depends on."""
    digest = hashlib.sha256()
    files = [model_folder / name for name in SOURCE_FILES] + sorted(model_folder.glob("*.safetensors"))
    for path in files:
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
