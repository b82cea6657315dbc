"""`mmcli runs verify`: every file compared with its checksum."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.options import AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.verify import Verified


def verify(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Number, name or folder; default: all.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Check every file of the runs and of their token caches for damage.

    Model, exports, tokenizer and checkpoints are compared with their SHA-256 manifests, caches with their checksums.
    Temporary folders of processes that died are removed. The exit code is 1 if anything is damaged, 2 if that was
    asked for by name.

    Example: mmcli runs verify; mmcli runs verify 7
    """
    from mmcli.cli.console import print_error, print_json
    from mmcli.errors import MmcliError
    from mmcli.find import find_run
    from mmcli.run import list_runs
    from mmcli.verify import list_caches, verify_cache, verify_run

    named = [find_run(ref, runs_dir) for ref in runs or []]
    found = [verify_run(run) for run in named or list_runs(runs_dir)]
    caches = [cache for run in named for cache in list_caches(run.path.parent, run)] if named else list_caches(runs_dir)
    found += [verify_cache(cache) for cache in dict.fromkeys(caches)]
    if json:
        print_json([_verified_row(each) for each in found])
    else:
        _print_verified(found)
    faults = [fault for each in found for fault in each.faults]
    for fault in faults:
        print_error(MmcliError(fault.what, fault.fix))
    if faults:
        raise typer.Exit(2 if named else 1)


def _verified_row(verified: Verified) -> dict[str, Any]:
    faults = [asdict(fault) for fault in verified.faults]
    removed = [str(path) for path in verified.removed]
    row = {"name": verified.name, "files": verified.files, "bytes": verified.bytes}
    return {**row, "whole": not faults, "faults": faults, "removed": removed}


def _print_verified(found: list[Verified]) -> None:
    from rich.table import Table

    from mmcli.cli.console import amount, err, out

    table = Table(box=None, pad_edge=False)
    for name in ("name", "files", "bytes", "state"):
        table.add_column(name, overflow="fold", justify="right" if name in ("files", "bytes") else "left")
    for each in found:
        state = f"{len(each.faults)} damaged" if each.faults else "ok"
        table.add_row(each.name, str(each.files), amount(each.bytes), state)
    out().print(table)
    for each in found:
        for path in each.removed:
            err().print(f"removed {path}, which a killed process had left", markup=False)
