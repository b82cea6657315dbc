"""`mmcli export onnx`: build the graph, write the folder beside its place, prove it, then rename it into place."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from mmcli import __version__
from mmcli.errors import UserError
from mmcli.export.calibrate import fit
from mmcli.export.decoder import build_model, refuse_unsupported
from mmcli.export.locate import RECORD_FILE, Dtype, fingerprint, refuse_foreign
from mmcli.export.matrices import FORMATS, NBits
from mmcli.export.onnx_folder import write_companions, write_graph
from mmcli.export.proof import Proof, prove
from mmcli.files import atomic_folder
from mmcli.generate.onnx_engine import GRAPH_FILE
from mmcli.model.config import ModelConfig
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
    source: Path,
    out: Path,
    *,
    dtype: Dtype = "fp32",
    context: int | None = None,
    force: bool = False,
    stage: str | None = None,
    report: Reporter | None = None,
) -> OnnxExport:
    """Export the model in `source` into `out`, which is replaced if it is an earlier export.

    Args:
        dtype: how matrices are stored: "fp32", "fp16" (computed in fp32), "int8" or "int4" (weights alone).
        context: the most tokens of a sequence; None: what the model was made for.
        force: keep an export whose perplexity rises by more than its limit.
        stage: of the run that the model came from, stored in the export's config.json.

    Raises:
        UserError: no model there, a field that is not supported, a context that it does not have, or `out` is not an
            earlier export.
        MmcliError: the export differs from torch; nothing is left of it.
    """
    report = report or Silent()
    config = read_model_config(source)
    refuse_unsupported(config)
    exported = _with_context(config, context)
    refuse_foreign(out, None)  # the record of an ONNX export names no format
    tokenizer = Tokenizer.load(source)
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {config.vocab_size:,}"
        raise UserError(what, "put the tokenizer that the model was trained with into the folder")
    model = load_model(source)
    with atomic_folder(out) as beside:
        report.note(f"building the {dtype} graph of {source}")
        matrices = FORMATS[dtype]
        if isinstance(matrices, NBits) and matrices.bits == 4:
            matrices = fit(matrices, model, tokenizer)
            kept = ", ".join(("embedding", "head", *(part.strip(".") for part in matrices.kept)))
            report.note(f"in 8 bits: {kept}")
        write_graph(beside, build_model(model, matrices, exported.max_seq_len))
        write_companions(beside, source, exported, tokenizer, stage=stage)
        report.note("comparing it with torch: logits, greedy tokens, perplexity, tokenizer")
        proof = prove(beside, model, tokenizer, dtype, fate="nothing was kept", force=force)
        if proof.forced is not None:
            report.warn(f"kept by --force: {proof.forced}")
        size = sum(path.stat().st_size for path in beside.glob(GRAPH_FILE + "*"))
        record = {
            "source": fingerprint(source),
            "model": _path_from(out, source),
            "versions": {"mmcli": __version__, "onnxruntime": onnxruntime.__version__},
            "eight_bits": list(matrices.kept) if isinstance(matrices, NBits) else None,  # parts of names of matrices
            "proof": dataclasses.asdict(proof),
        }
        (beside / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return OnnxExport(out, proof, size)


def _with_context(config: ModelConfig, context: int | None) -> ModelConfig:
    """The configuration with another context, everything else computing as before.

    Raises:
        UserError: the model was not made for so many tokens.
    """
    if context is None or context == config.max_seq_len:
        return config
    if not 1 <= context <= config.max_seq_len:
        what = f"context = {context:,}; the model was made for {config.max_seq_len:,} tokens"
        raise UserError(what, f"give 1 up to {config.max_seq_len}")
    stretched = config.rope_scaling in ("yarn", "llama3")  # these depend on the context that was trained
    original = config.original_seq_len if stretched else config.rope_original_seq_len
    return dataclasses.replace(config, max_seq_len=context, rope_original_seq_len=original)


def _path_from(out: Path, source: Path) -> str:
    """The way from an export to its model: it stays right when a run is moved as a whole."""
    try:
        return Path(os.path.relpath(source.resolve(), out.resolve())).as_posix()
    except ValueError:  # two drives of Windows
        return source.resolve().as_posix()
