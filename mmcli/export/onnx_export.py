"""`mmcli export onnx`: build the graph, write the folder beside its place, prove it, then rename it into place."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from mmcli import __version__
from mmcli.errors import UserError
from mmcli.export.calibrate import calibration_texts, fit
from mmcli.export.decoder import build_model, refuse_unsupported
from mmcli.export.locate import RECORD_FILE, Dtype, Ops, Target, fingerprint, graph_bytes, refuse_foreign
from mmcli.export.matrices import FORMATS, NBits
from mmcli.export.onnx_folder import write_companions, write_graph
from mmcli.export.proof import Proof, prove
from mmcli.export.targets import FINISH, PORTABLE, refuse_impossible
from mmcli.files import atomic_folder, write_json
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_config import read_model_config
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.transformer import Transformer
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
    target: Target = "cpu",
    ops: Ops = "fused",
    context: int | None = None,
    calibrate: Path | None = None,
    force: bool = False,
    stage: str | None = None,
    report: Reporter | None = None,
) -> OnnxExport:
    """Export the model in `source` into `out`, which is replaced if it is an earlier export.

    Args:
        dtype: how matrices are stored: "fp32", "fp16" (computed in fp32), "int8" or "int4" (weights alone).
        target: where it runs: see `targets`.
        ops: of the graph: ONNX Runtime's fused operators, or those of the ONNX standard alone.
        context: the most tokens of a sequence; None: what the model was made for.
        calibrate: text or conversations that int4 is fitted to; None: built-in documents.
        force: keep an export whose perplexity rises by more than its limit.
        stage: of the run that the model came from, stored in the export's config.json.

    Raises:
        UserError: no model there, a field that is not supported, a context that it does not have, options that do not
            go together, data that cannot be used, or `out` is not an earlier export.
        MmcliError: the export differs from torch; nothing is left of it.
    """
    refuse_foreign(out, None)  # the record of an ONNX export names no format
    plan = plan_export(source, dtype=dtype, target=target, ops=ops, context=context, calibrate=calibrate)
    with atomic_folder(out) as beside:
        return fill_folder(beside, plan, out=out, force=force, stage=stage, report=report or Silent())


@dataclass(frozen=True)
class Plan:
    """An export that was found possible, with the model loaded."""

    source: Path
    dtype: Dtype
    target: Target
    ops: Ops
    config: ModelConfig  # with the exported context
    model: Transformer
    tokenizer: Tokenizer
    texts: list[list[int]]  # that 4 bits are fitted to


def plan_export(
    source: Path,
    *,
    dtype: Dtype,
    target: Target = "cpu",
    ops: Ops = "fused",
    context: int | None = None,
    calibrate: Path | None = None,
) -> Plan:
    """Look at everything that can be refused, and load the model; arguments and errors as in `export_onnx`."""
    config = read_model_config(source)
    refuse_unsupported(config)
    refuse_impossible(target, dtype)
    if calibrate is not None and dtype != "int4":
        what = f"--calibrate with --dtype {dtype}, which is fitted to no text"
        raise UserError(what, "omit it, or give --dtype int4")
    exported = _with_context(config, context)
    tokenizer = Tokenizer.load(source)
    if tokenizer.vocab_size > config.vocab_size:
        what = f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {config.vocab_size:,}"
        raise UserError(what, "put the tokenizer that the model was trained with into the folder")
    texts = calibration_texts(tokenizer, calibrate, config.max_seq_len) if dtype == "int4" else []
    return Plan(source, dtype, target, ops, exported, load_model(source), tokenizer, texts)


def fill_folder(folder: Path, plan: Plan, *, out: Path, force: bool, stage: str | None, report: Reporter) -> OnnxExport:
    """Write the export into `folder`, an empty one that will be `out`, and verify it; errors as in `export_onnx`."""
    dtype, tokenizer = plan.dtype, plan.tokenizer
    report.note(f"building the {dtype} graph of {plan.source}")
    matrices = FORMATS[dtype]
    if isinstance(matrices, NBits) and matrices.bits == 4:
        matrices = fit(matrices, plan.model, plan.texts)
        kept = ", ".join(("embedding", "head", *(part.strip(".") for part in matrices.kept)))
        report.note(f"in 8 bits: {kept}")
    portable = plan.target in PORTABLE
    write_graph(folder, build_model(plan.model, matrices, plan.config.max_seq_len, ops=plan.ops, portable=portable))
    write_companions(folder, plan.source, plan.config, tokenizer, ops=plan.ops, stage=stage)
    report.note("comparing it with torch: logits, greedy tokens, perplexity, tokenizer")
    proof = prove(folder, plan.model, tokenizer, dtype, fate="nothing was kept", force=force)
    if proof.forced is not None:
        report.warn(f"kept by --force: {proof.forced}")
    FINISH[plan.target](folder, dtype)
    record = {
        "source": fingerprint(plan.source),
        "model": _path_from(out, plan.source),
        "target": plan.target,
        "ops": plan.ops,
        "versions": {"mmcli": __version__, "onnxruntime": onnxruntime.__version__},
        "eight_bits": list(matrices.kept) if isinstance(matrices, NBits) else None,  # parts of names of matrices
        "proof": dataclasses.asdict(proof),
    }
    write_json(folder / RECORD_FILE, record)
    return OnnxExport(out, proof, graph_bytes(folder))


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
