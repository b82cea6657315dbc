"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.errors import UserError, did_you_mean
from mmcli.evaluation.engines import ENGINES


def _known_backend(name: str) -> str:
    if name not in ENGINES:
        raise UserError(f'--backend "{name}" is not one of {", ".join(ENGINES)}', did_you_mean(name, list(ENGINES)))
    return name


RunsDir = Annotated[Path, typer.Option("--runs-dir", envvar="MMCLI_RUNS", help="Folder of the runs.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=COLUMN", help="Read the column COLUMN as FIELD, such as text=body; repeatable."),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT",
        help="Resume though this input changed, no longer bit-exactly: config, data, tokenizer, parent, reference or"
        " adapter; repeatable.",
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option(metavar="N", help="Train with N processes on this machine; over several machines: torchrun or srun."),
]
Model = Annotated[
    str, typer.Argument(help="Run number or name, model folder, latest or latest:STAGE; 7/best: the best of run 7.")
]
Backend = Annotated[
    str,
    typer.Option(metavar="|".join(ENGINES), help="Inference engine: PyTorch or ONNX Runtime.", callback=_known_backend),
]
Device = Annotated[str, typer.Option(help="Device for PyTorch: auto, cpu, cuda, cuda:1 or mps.")]
Draft = Annotated[
    str,
    typer.Option(
        metavar="lookup|MODEL|off",
        help="Speculative decoding, the same tokens sooner: drafts from the text so far (lookup), or also from a"
        " small MODEL with the same tokenizer.",
    ),
]
