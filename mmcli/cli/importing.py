"""`mmcli import`: a model trained elsewhere becomes a run, so that chat, sft and export find it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir
from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.model.formats.read import Imported

app = App()
STAGE = "import"


@app.command("import")
def import_model(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="HF-format folder, MiniMind .pth, or .gguf file.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; default: a new run.", metavar="DIR")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer run or folder, in place of the model's own; a .pth has none.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings that a .pth does not store: model.n_heads=16.", metavar="KEY=VALUE"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Import a model that was trained elsewhere: weights, tokenizer and chat template.

    Example: mmcli import ./Qwen3-0.6B
    """
    from mmcli.cli.console import print_json, reporter
    from mmcli.config import parse_set

    if out is not None and name is not None:
        raise UserError(f"--name {name} is for a run, but --out {out} makes none", "omit one of them")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "give --out a new folder")
    report = reporter()
    report.note(f"reading {source}")
    from mmcli.files import atomic_folder
    from mmcli.model.count import count_parameters
    from mmcli.model.formats.read import read_model, save_imported
    from mmcli.text.find import find_tokenizer

    own = find_tokenizer(tokenizer, runs_dir) if tokenizer is not None else None
    found = read_model(source, tokenizer=own, settings=parse_set(sets) if sets else None)
    for note in found.notes:
        report.note(note)
    config = found.model.config
    count = count_parameters(config).total
    report.note(f"{found.kind}: {config.dim} x {config.n_layers} layers, {count / 1e6:.1f}M parameters")
    if out is None:
        run, folder = _save_run(found, runs_dir, name or source.stem)
    else:
        run, folder = None, out
        with atomic_folder(out) as beside:
            save_imported(beside, found)
    template = found.tokenizer.chat_template is not None
    if json:
        facts = {"kind": found.kind, "parameters": count, "chat_template": template}
        print_json({"run": run, "folder": str(folder), "source": str(source), **facts})
    else:
        typer.echo(f"imported: {folder}")
        where = "" if run else f" {folder}"
        report.note(f"talk to it: mmcli chat{where}" if template else f"it has no chat template: mmcli chat{where}")


def _save_run(found: Imported, runs_dir: Path, label: str) -> tuple[str, Path]:
    """(name, model folder) of a new finished run."""
    import shutil

    from mmcli.files import atomic_folder
    from mmcli.model.formats.read import save_imported
    from mmcli.run import Run

    run = Run.create(runs_dir, STAGE, label)
    source = {"source": str(found.source.resolve()), "kind": found.kind}
    try:
        with run.lock():
            run.begin()
            with atomic_folder(run.model) as folder:
                save_imported(folder, found)
            run.update(state="finished", tokenizer=found.tokenizer.fingerprint, **source)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)  # nothing was made: leave no empty run behind
        raise
    return run.name, run.model
