"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.evaluation.engines import ENGINES

HELP = {"help_option_names": ["-h", "--help"]}
RunsDir = Annotated[Path, typer.Option("--runs-dir", envvar="MMCLI_RUNS", help="Where the runs are.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout.")]
Columns = Annotated[
    list[str] | None, typer.Option(help="FIELD=COLUMN: what the data calls a field, as text=body; may be repeated.")
]
Backend = Annotated[str, typer.Option(metavar=f"<{'|'.join(ENGINES)}>", help="What runs the model.")]
