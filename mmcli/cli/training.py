"""What `mmcli STAGE` does with its options: a new run, or `--resume`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmcli import runner
from mmcli.cli.console import print_json, reporter
from mmcli.config import Layer, parse_set
from mmcli.errors import UserError
from mmcli.find import find_unfinished
from mmcli.ranks import LAUNCHED
from mmcli.run import Run
from mmcli.stage import Reporter, Stage
from mmcli.train.config import duration


def run_stage(
    stage: Stage,
    *,
    flags: Sequence[Layer],
    config: Path | None,
    set: Sequence[str] | None,
    json: bool,
    runs_dir: Path,
    name: str | None,
    resume: bool,
    allow_change: Sequence[str] | None,
    preset: str | None = None,
    nproc: int | None = None,
) -> None:
    """Run a stage from the command line, or resume its newest unfinished run."""
    launch_ranks(nproc)
    if resume:
        given = [layer.name for layer in flags] + (["--set"] if set else []) + (["--config"] if config else [])
        if given or preset or name:
            what = f"--resume keeps the stored configuration; {(given or ['--preset/--name'])[0]} would change it"
            raise UserError(what, f"leave it out, or start a new run: mmcli {stage.name} --from latest ...")
        found = find_unfinished(runs_dir, stage.name)
        report = reporter(found.metrics)
        run = runner.resume(found, report, allow=allow_change or [])
    else:
        if allow_change:
            raise UserError("--allow-change is of a run that is resumed", "add --resume, or leave it out")
        own, report = [parse_set(set or []), *flags], reporter()
        run = runner.start(stage, own, runs_dir=runs_dir, preset=preset, config_file=config, name=name, report=report)
    tell_ending(run, report)
    if json:
        print_run(run)


def launch_ranks(nproc: int | None) -> None:
    """Where `--nproc` asks for it, run this command line in so many processes and end with their exit code."""
    if nproc is None or os.environ.get(LAUNCHED):
        return
    from mmcli.cli.launch import launch

    sys.exit(launch(nproc, sys.argv[1:]))


def tell_ending(run: Run, report: Reporter) -> None:
    """Say what a training leaves: the run, how long it took, the model, and the command that comes next."""
    info = run.info()
    took = f" after {duration(info['elapsed_seconds'])}" if info.get("elapsed_seconds") is not None else ""
    model = f": {run.model}" if run.model.is_dir() else ""
    report.note(f"{run.name} {info['state']}{took}{model}")
    if info["state"] != "finished":
        report.note(f"next: mmcli resume {run.reference}")
    elif model:
        tune = f", or fine-tune it: mmcli sft --from {run.reference}" if run.stage == "pretrain" else ""
        report.note(f"next: mmcli chat {run.reference}{tune}")


def print_run(run: Run) -> None:
    """A run that ended, as one JSON document, by the process that writes it."""
    if run.is_writable:
        print_json({"run": run.name, "path": str(run.path), **run.info()})
