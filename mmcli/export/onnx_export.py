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
from mmcli.export.locate import RECORD_FILE, Dtype, fingerprint
from mmcli.export.onnx_folder import write_companions, write_graph
from mmcli.export.proof import Proof, prove
from mmcli.generate.onnx_engine import GRAPH_FILE
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model
from mmcli.run import atomic_folder
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Export:
    """A proven export."""

    folder: Path
    proof: Proof
    bytes: int  # of the graph and its weights


def export_onnx(
    source: Path, out: Path, *, dtype: Dtype = "fp32", stage: str | None = None, report: Reporter | None = None
) -> Export:
    """Export the model in `source` into `out`, which is replaced if it is an earlier export.

    Args:
        dtype: "fp32", or "int8": matrices in uint8, activations quantized as they come.
        stage: of the run that the model came from, kept in the export's config.json.

    Raises:
        UserError: no model there, a field that is not supported, or something else lies in `out`.
        MmcliError: the export differs from torch; nothing is left of it.
    """
    report = report or Silent()
    config = read_model_config(source)
    refuse_unsupported(config)
    _refuse_foreign(out)
    tokenizer = Tokenizer.load(source)
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {config.vocab_size:,}"
        raise UserError(what, "put the tokenizer that the model was trained with into the folder")
    model = load_model(source)
    with atomic_folder(out) as beside:
        report.note(f"building the {dtype} graph of {source}")
        write_graph(beside, build_model(model, int8=dtype == "int8"))
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
    return Export(out, proof, size)


def _refuse_foreign(out: Path) -> None:
    """An export replaces an earlier export, never anything else."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not (out / RECORD_FILE).is_file():
        raise UserError(f"{out} exists and is no export", "give --out a new folder")
