"""`mmcli export check`: an export that was made some time ago, its files and what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from mmcli.errors import UserError
from mmcli.export.locate import RECORD_FILE, Dtype, fingerprint, graph_bytes, graph_file, read_record
from mmcli.export.proof import Proof, prove
from mmcli.manifest import MANIFEST, damages
from mmcli.model.formats.hf_folder import load_model
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

NEEDED = (RECORD_FILE, "config.json", "tokenizer.json")
AGAIN = "export it again: mmcli export onnx"


@dataclass(frozen=True)
class Checked:
    """An export whose files are whole."""

    folder: Path
    files: int
    bytes: int  # of the graph and its weights
    model: Path | None  # that it was made of, as the record tells
    proof: Proof | None  # that it computes what the model computes
    not_compared: str | None  # why there is no proof


def check_export(folder: Path, *, report: Reporter | None = None) -> Checked:
    """Check every file of an ONNX export, then compare it with its model again, if that is still there.

    Raises:
        UserError: no ONNX export, or a damaged one: every file that is.
        MmcliError: it does not compute what its model computes.
    """
    report = report or Silent()
    graph = graph_file(folder)
    if not graph.is_file() and not (folder / RECORD_FILE).is_file():
        raise UserError(f"{folder} is not an ONNX export", "give the folder that mmcli export onnx made")
    needed = (graph.relative_to(folder).as_posix(), *NEEDED)
    faults = [str(each) for each in damages(folder, needed=needed)] or list(_outside(graph))
    if faults:
        raise UserError("; ".join(faults), f"restore the files from a copy, or {AGAIN}")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    size = graph_bytes(folder)
    record = read_record(folder)
    model, reason = _model_of(folder, record)
    dtype: Dtype | None = next((each for each in get_args(Dtype) if each == _told(record, "dtype")), None)
    if reason is None and dtype is None:
        reason = f"{folder / RECORD_FILE} names no format that this version of mmcli has"
    if reason is not None or model is None or dtype is None:
        return Checked(folder, len(files), size, model, None, reason)
    report.note(f"comparing it with {model}: logits, greedy tokens, perplexity, tokenizer")
    forced = _told(record, "forced") is not None
    try:
        again = prove(
            folder, load_model(model), Tokenizer.load(model), dtype, fate="it was left as it is", force=forced
        )
    except OSError as error:  # the comparison runs a copy of the graph
        raise UserError(f"cannot compare {folder}: {error}", "free space for a copy of it, or set TMPDIR") from None
    return Checked(folder, len(files), size, model, again, None)


def _told(record: dict[str, object], key: str) -> object:
    """An entry of the proof in an export's record, None if there is none."""
    proof = record.get("proof")
    return proof.get(key) if isinstance(proof, dict) else None


def _model_of(folder: Path, record: dict[str, object]) -> tuple[Path | None, str | None]:
    """(the model's folder, why it cannot be compared with)."""
    way = record.get("model")
    if not isinstance(way, str):
        return None, f"{folder / RECORD_FILE} does not tell of which model it is"
    model = (folder / way).resolve()
    if not (model / "config.json").is_file():
        return model, f"its model is no longer at {model}"
    if fingerprint(model) != record.get("source"):
        return model, f"{model} holds another model by now"
    return model, None


def _outside(graph: Path) -> Iterator[str]:
    """What is wrong with the files that the graph names for its weights."""
    try:
        model = onnx.load(graph, load_external_data=False).graph
    except DecodeError:
        yield f"{graph} is not an ONNX graph"
        return
    ends: dict[str, int] = {}
    for tensor in model.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            place = entries.get("location", "")
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
            ends[place] = max(ends.get(place, 0), end)
    for place, end in ends.items():
        folder, path = graph.parent, graph.parent / place
        if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
            yield f"{graph} takes weights from {place}, which is outside the folder"
        elif not path.is_file() or path.stat().st_size < end:
            yield f"{path}, which {graph.name} takes weights from, is missing or too short"
