"""`mmcli export`: a model in ONNX, Hugging Face or GGUF format, verified against torch or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, Model, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.export.proof import Proof
    from mmcli.run import ModelRef
    from mmcli.stage import Reporter

app = App()


@app.callback()
def export() -> None:
    """Export a model to ONNX, Hugging Face or GGUF format, and verify it."""


@app.command("onnx")
def onnx(
    model: Model = "latest",
    dtype: Annotated[
        Literal["fp32", "fp16", "int8", "int4"],
        typer.Option(help="Matrix format. fp16 halves the file, computed in fp32; int8 and int4: quantized weights."),
    ] = "fp32",
    target: Annotated[
        Literal["cpu", "mobile", "web", "genai"],
        typer.Option(
            help="Where it runs. mobile adds an .ort file; web is laid out for transformers.js; genai is also verified"
            " in onnxruntime-genai."
        ),
    ] = "cpu",
    ops: Annotated[
        Literal["fused", "standard"],
        typer.Option(help="Operators: ONNX Runtime's own, or those of the ONNX standard alone, for other runtimes."),
    ] = "fused",
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; default: the model's.", metavar="N")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text or conversations to fit int4 to; default: built-in documents."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default: RUN/export/onnx-DTYPE, for other targets -TARGET.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep an export whose perplexity rises by more than its limit.")
    ] = False,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Export to ONNX and verify against torch; an export that differs is removed.

    Example: mmcli export onnx latest:sft --dtype int8
    """
    from mmcli.cli.console import print_json
    from mmcli.export.locate import default_folder

    found, folder, report = _begin(model, runs_dir, out, lambda found: default_folder(found, dtype, target, ops))
    from mmcli.export.onnx_export import export_onnx

    made = export_onnx(
        *(found.path, folder),
        dtype=dtype,
        target=target,
        ops=ops,
        context=context,
        calibrate=calibrate,
        force=force,
        stage=found.stage,
        report=report,
    )
    if json:
        print_json({"model": found.label, "folder": str(made.folder), "bytes": made.bytes, "proof": _proof(made.proof)})
    else:
        typer.echo("\n".join(_table(made.proof, made.bytes)))
        typer.echo(f"\n{'kept' if made.proof.forced else 'verified'}: {made.folder}")
        if target != "web":
            report.note(f"chat without torch: mmcli chat {made.folder} --backend onnx")


@app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an ONNX export.")], json: AsJson = False
) -> None:
    """Check an ONNX export for damage, and verify it against its model again.

    Every file is compared with its checksum, and weights outside the folder are refused. Without its model, or where
    that has changed, the files alone are checked. Exit code: 2 for damage, 1 for an export that differs.

    Example: mmcli export check runs/0007-sft-small/export/onnx-int8
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.export.check import check_export

    report = reporter()
    found = check_export(folder, report=report)
    model = None if found.model is None else str(found.model)
    if json:
        proof = None if found.proof is None else _proof(found.proof)
        facts = {"folder": str(folder), "files": found.files, "bytes": found.bytes, "model": model}
        print_json({**facts, "not_compared": found.not_compared, "proof": proof})
        return
    typer.echo(f"{'files':<18} {found.files:>12}  as they were written")
    if found.proof is None:
        report.warn(f"not compared with its model: {found.not_compared}")
        return
    typer.echo("\n".join(_table(found.proof, found.bytes)))
    typer.echo(f"\n{'as it was kept' if found.proof.forced else 'verified'}: {folder}")


@app.command("hf")
def huggingface(
    model: Model = "latest",
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Weight type; default: that of the source.")
    ] = None,
    layout: Annotated[
        Literal["transformers", "minimind"],
        typer.Option(help="minimind: files as MiniMind2 was released, for MiniMind's own code."),
    ] = "transformers",
    card: Annotated[
        bool, typer.Option("--card", help="Write a model card: README.md with data, scores and the loss.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Licence that the card states, such as apache-2.0.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; default: RUN/export/hf or hf-DTYPE.")] = None,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Export to Hugging Face format for transformers and vLLM; read back and compared.

    Example: mmcli export hf latest:sft --dtype bf16; mmcli export hf --card --license apache-2.0
    """
    import dataclasses

    from mmcli.cli.console import print_json
    from mmcli.export.locate import card_run, default_hf_folder

    if license is not None and not card:
        raise UserError("--license without --card", "add --card: it is there that a licence is stated")
    found, folder, _ = _begin(model, runs_dir, out, lambda found: default_hf_folder(found, dtype))
    from mmcli.export.huggingface import export_huggingface

    made = export_huggingface(
        found.path,
        folder,
        dtype=dtype,
        layout=layout,
        stage=found.stage,
        card_of=card_run(found) if card else None,
        license=license,
    )
    if json:
        facts = {**dataclasses.asdict(made), "folder": str(made.folder), "perplexity_rise": made.perplexity_rise}
        print_json({"model": found.label, **facts})
        return
    lines = {
        "weights": f"{made.dtype}, {made.bytes / 1e6:.1f} MB, equal when read back",
        "tokenizer": f"{made.round_trips} of {made.round_trips} texts and conversations equal",
        "perplexity": f"{round(made.perplexity_rise, 4) + 0.0:+.2%}, loss {made.loss_after:.4g} on built-in documents",
        "model type": made.model_type,
    }
    typer.echo("\n".join(f"{name:<18} {value}" for name, value in lines.items()))
    typer.echo(f"\nverified: {made.folder}")


@app.command("gguf")
def gguf(
    model: Model = "latest",
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_0"],
        typer.Option(help="Weight type; q8_0 is about a quarter of f32, q4_0 a seventh."),
    ] = "f16",
    out: Annotated[Path | None, typer.Option(help="Output file; default: RUN/export/RUN-DTYPE.gguf.")] = None,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Export to GGUF for llama.cpp, Ollama and LM Studio; read back and compared.

    Example: mmcli export gguf latest:sft --dtype q8_0
    """
    import dataclasses

    from mmcli.cli.console import print_json
    from mmcli.export.locate import default_gguf_file

    found, path, report = _begin(model, runs_dir, out, lambda found: default_gguf_file(found, dtype))
    from mmcli.export.gguf import PERPLEXITY_LIMITS, export_gguf

    made = export_gguf(found.path, path, dtype=dtype, report=report)
    if json:
        paths = {"path": str(made.path), "modelfile": str(made.modelfile)}
        facts = {**dataclasses.asdict(made), **paths, "perplexity_rise": made.perplexity_rise}
        print_json({"model": found.label, **facts})
        return
    types = ", ".join(f"{count} {name}" for name, count in made.tensors.items())
    rise = round(made.perplexity_rise, 4) + 0.0  # + 0.0: no minus before a zero
    lines = {
        "weights": f"{made.dtype}, {made.bytes / 1e6:.1f} MB; tensors: {types}",
        "tokenizer": f"{made.round_trips} of {made.round_trips} texts and conversations equal",
        "perplexity": f"{rise:+.2%}; limit +{PERPLEXITY_LIMITS[dtype]:.1%}; loss {made.loss_after:.4g}",
        "architecture": made.architecture,
    }
    typer.echo("\n".join(f"{name:<18} {value}" for name, value in lines.items()))
    typer.echo(f"\nverified: {made.path}")
    report.note(f"for Ollama: ollama create NAME -f {made.modelfile}")


@app.command("web")
def web(
    model: Model = "latest",
    dtype: Annotated[
        Literal["fp32", "fp16", "int8", "int4"],
        typer.Option(help="Matrix format. fp16 halves the download; int8 and int4: a quarter, a sixth."),
    ] = "fp32",
    runtime: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the npm package onnxruntime-web.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download that package (33 MB) from npm's registry.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder; default: RUN/export/web-DTYPE.")] = None,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Export a page that runs the model in the visitor's browser, for any static server.

    Example: mmcli export web latest:sft --download
    """
    from mmcli.cli.console import print_json
    from mmcli.export.locate import default_web_folder

    found, folder, report = _begin(model, runs_dir, out, lambda found: default_web_folder(found, dtype))
    from mmcli.export.web.folder import export_web

    name = found.label if found.run else found.path.resolve().name
    made = export_web(
        *(found.path, folder),
        name=name,
        dtype=dtype,
        stage=found.stage,
        runtime=runtime,
        download=download,
        report=report,
    )
    if json:
        document = {"model": found.label, "folder": str(made.folder), "bytes": made.bytes}
        print_json({**document, "graph_bytes": made.graph_bytes, "proof": _proof(made.proof)})
        return
    typer.echo("\n".join(_table(made.proof, made.graph_bytes)))
    typer.echo(f"{'folder':<18} {f'{made.bytes / 1e6:.1f} MB':>12}  with page and runtime")
    typer.echo(f"\nverified: {made.folder}")
    report.note(f"try it: python -m http.server --bind 127.0.0.1 -d {made.folder}")


def _begin(
    model: str, runs_dir: Path, out: Path | None, default: Callable[[ModelRef], Path]
) -> tuple[ModelRef, Path, Reporter]:
    """The model of an export and its place, which are said, and the reporter for the rest of it.

    Args:
        default: the place where no `out` is given.

    Raises:
        UserError: there is no such model.
    """
    from mmcli.cli.console import reporter
    from mmcli.find import find_language_model

    found = find_language_model(model, runs_dir)
    place = out if out is not None else default(found)
    report = reporter()
    report.note(f"exporting {found.label} to {place}")
    return found, place, report


def _proof(proof: Proof) -> dict[str, Any]:
    """For --json."""
    import dataclasses

    document = dataclasses.asdict(proof)
    for way, each in proof.perplexity.items():
        document["perplexity"][way]["rise"] = each.rise
    return document


def _table(proof: Proof, size: int) -> list[str]:
    """The proof, a line for each thing that was compared."""
    from mmcli.export.matrices import FORMATS

    limits = FORMATS[proof.dtype].limits
    shown = "" if limits.logits is None else f"; limit {limits.logits * proof.scale:.2g}"
    lines = [
        (f"logits, {phase}", f"{difference:.1e}", f"greatest difference{shown}")
        for phase, difference in proof.logits.items()
    ]
    if limits.logits_error is not None:
        lines.append(
            ("logits, error", f"{proof.logits_error:.1%}", f"of their spread; limit {limits.logits_error:.0%}")
        )
    lines.append(
        (
            "batch and single",
            f"{proof.batch_error:.1e}",
            f"RMS difference; limit {limits.batch_error * proof.scale:.2g}",
        )
    )
    ties = f", {proof.greedy_ties} ties" if proof.greedy_ties else ""
    prompts = "prompts of " + ", ".join(str(length) for length in proof.prompts)
    lines.append(("greedy tokens", f"{proof.greedy_equal} of {proof.greedy_tokens}", f"equal{ties}; {prompts}"))
    for way, each in proof.perplexity.items():
        rise = round(each.rise, 4) + 0.0  # + 0.0: no minus before a zero
        note = f"{rise:+.2%}; limit +{limits.perplexity:.1%}; torch {each.torch:.4g}, {each.tokens} tokens"
        lines.append((f"perplexity, {way}", f"{each.onnx:.4g}", note))
    lines.append(("tokenizer", f"{proof.round_trips} of {proof.round_trips}", "texts and conversations equal"))
    lines.append(("size", f"{size / 1e6:.1f} MB", proof.dtype))
    return [f"{name:<18} {value:>12}  {note}" for name, value, note in lines]
