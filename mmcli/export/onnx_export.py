"""`mmcli export onnx`: build the graph, write the folder beside its place, prove it, then rename it into place."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from mmcli import __version__
from mmcli.errors import UserError
from mmcli.export.decoder import build_model, refuse_unsupported
from mmcli.export.locate import RECORD_FILE, Dtype, fingerprint, refuse_foreign
from mmcli.export.matrices import FORMATS
from mmcli.export.onnx_folder import write_companions, write_graph
from mmcli.export.proof import Proof, prove
from mmcli.files import atomic_folder
from mmcli.generate.onnx_engine import GRAPH_FILE
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class OnnxExport:
    """An export that was verified against torch."""

    folder: Path
    proof: Proof
    bytes: int  # of the graph and its weights


def export_onnx(
    source: Path, out: Path, *, dtype: Dtype = "fp32", stage: str | None = None, report: Reporter | None = None
) -> OnnxExport:
    """OnnxExport the model in `source` into `out`, which is replaced if it is an earlier export.

    Args:
        dtype: how matrices are stored: "fp32", or "int8" (uint8, activations quantized as they come).
        stage: of the run that the model came from, stored in the export's config.json.

    Raises:
        UserError: no model there, a field that is not supported, or `out` is not an earlier export.
        MmcliError: the export differs from torch; nothing is left of it.
    """
    report = report or Silent()
    config = read_model_config(source)
    refuse_unsupported(config)
    refuse_foreign(out, None)  # the record of an ONNX export names no format
    tokenizer = Tokenizer.load(source)
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {config.vocab_size:,}"
        raise UserError(what, "put the tokenizer that the model was trained with into the folder")
    model = load_model(source)
    with atomic_folder(out) as beside:
        report.note(f"building the {dtype} graph of {source}")
        write_graph(beside, build_model(model, FORMATS[dtype]))
        write_companions(beside, source, config, tokenizer, stage=stage)
        report.note("proving it against torch: logits, greedy tokens, perplexity, tokenizer")
        proof = prove(beside, model, tokenizer, dtype)
        size = sum(path.stat().st_size for path in beside.glob(GRAPH_FILE + "*"))
        record = {
            "source": fingerprint(source),
            "versions": {"mmcli": __version__, "onnxruntime": onnxruntime.__version__},
            "proof": dataclasses.asdict(proof),
        }
        (beside / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return OnnxExport(out, proof, size)
