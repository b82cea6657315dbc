"""`mmcli runs rename|remove|prune`: what changes runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.cli.options import AsJson, RunsDir

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rename(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")],
    name: Annotated[str, typer.Argument(help="New name; the number and the stage stay.")],
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Give a run another name.

    Its number and stage stay, and so does what was started from it. The former name still finds the run.

    Example: mmcli runs rename 7 books
    """
    from mmcli.cli.console import out, print_json
    from mmcli.find import find_run
    from mmcli.housekeeping import rename_run

    found = find_run(run, runs_dir)
    renamed = rename_run(found, name)
    if json:
        print_json({"run": renamed.name, "path": str(renamed.path), "former": found.name})
    else:
        out().print(f"{found.name} is now {renamed.name}", markup=False)


def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run number, name or folder.")],
    yes: Yes = False,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Remove runs: model, checkpoints, exports, everything. Asks first.

    A run that is in use is refused, and one without which another run cannot be resumed.

    Example: mmcli runs remove 3 4
    """
    from mmcli.cli.console import err, out, print_json
    from mmcli.errors import UserError
    from mmcli.files import size
    from mmcli.find import find_run
    from mmcli.housekeeping import children, disk_bytes, refuse_removal, remove_run

    found = list(dict.fromkeys(find_run(ref, runs_dir) for ref in runs))
    refuse_removal(found)
    for run in found:
        err().print(f"{run.path}  {run.info()['state']}, {size(disk_bytes(run.path))}", markup=False)
        if stay := [child.name for child in children(run) if child not in found]:
            err().print(f"  parent of {', '.join(stay)}, which keeps its own model", markup=False)
    what = f"remove {'this run' if len(found) == 1 else f'these {len(found)} runs'} for good?"
    if not yes:
        _ask(what, UserError("nothing was removed: there is no terminal to ask on", "add --yes"))
    freed = {run.name: remove_run(run) for run in found}
    if json:
        print_json({"removed": list(freed), "bytes": sum(freed.values())})
    else:
        out().print(f"removed {', '.join(freed)}: {size(sum(freed.values()))} freed", markup=False)


def _ask(question: str, no_terminal: Exception) -> None:
    """Go on only after a yes.

    Raises:
        typer.Exit: the answer is no.
    """
    import sys

    if not sys.stdin.isatty():
        raise no_terminal
    if not typer.confirm(question, err=True):
        raise typer.Exit(0)


def prune(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Number, name or folder; default: all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Remove checkpoints that nothing needs any more.

    Kept is the newest whole checkpoint of a run that can be resumed. A finished run keeps its models. A run in use is
    passed over, or refused if it was named.

    Example: mmcli runs prune --dry-run; mmcli runs prune 7
    """
    from mmcli.cli.console import err, out, print_json
    from mmcli.files import size
    from mmcli.find import find_run
    from mmcli.housekeeping import Pruned, prunable, prune_run
    from mmcli.run import list_runs

    named = list(dict.fromkeys(find_run(ref, runs_dir) for ref in runs or []))
    done: list[Pruned] = []
    for run in named or list_runs(runs_dir):
        if not named and run.info()["state"] == "running":
            err().print(f"{run.name} is in use: passed over", markup=False)
            continue
        pruned = prunable(run) if dry_run else prune_run(run)
        if pruned.removed:
            done.append(pruned)
    if json:
        print_json([_pruned_row(each) for each in done])
        return
    would = "would remove" if dry_run else "removed"
    for each in done:
        names, stay = (", ".join(path.name for path in paths) for paths in (each.removed, each.kept))
        kept = f"; kept {stay}" if stay else ""
        out().print(f"{each.run.name}: {would} {names} ({size(each.bytes)}){kept}", markup=False)
    total = size(sum(each.bytes for each in done))
    out().print(f"{total} {'would be freed' if dry_run else 'freed'}" if done else "no checkpoint to remove")


def _pruned_row(pruned: object) -> dict[str, object]:
    from mmcli.housekeeping import Pruned

    assert isinstance(pruned, Pruned)
    removed, kept = ([path.name for path in paths] for paths in (pruned.removed, pruned.kept))
    return {"run": pruned.run.name, "removed": removed, "kept": kept, "bytes": pruned.bytes}
