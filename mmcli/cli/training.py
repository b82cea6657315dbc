"""What `mmcli STAGE` does: layers -> config -> run folder -> the stage's own function -> the result."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcli.cli.console import print_json, reporter
from mmcli.cli.stages import load_stage, stage_function
from mmcli.config import (
    Layer,
    Leaf,
    Resolved,
    leaves,
    parse_set,
    preset_layers,
    preset_names,
    read_toml,
    resolve,
    to_tables,
)
from mmcli.errors import Interrupted, MmcliError, UserError
from mmcli.run import Run, find_model, find_unfinished
from mmcli.stage import Stage, StageContext

DEFAULT_PRESET = "tiny"


def stage_layers(
    stage: Stage,
    flags: Sequence[Layer],
    *,
    config: Path | None,
    set: Sequence[str] | None,
    preset: str | None = None,
    runs_dir: Path,
) -> tuple[list[Layer], str | None]:
    """The layers of one stage command, the later winning, and the preset they rest on.

    Without `--preset` the preset of the model it starts from is taken, else, for a stage that builds a model, `tiny`.
    """
    own: list[Layer] = []
    if config is not None:
        own.append(Layer(str(config), read_toml(config)))
    own += [parse_set(set or []), *flags]
    keys = {leaf.key: leaf for leaf in leaves(stage.config)}
    parent = _start_from(keys, own)
    if preset is not None:
        return [*preset_layers(preset, stage.name), *own], preset
    if parent is not None:  # its shape is the parent's own; the preset says how such a model is trained in this stage
        preset = _parent_preset(parent, runs_dir)
        layers = preset_layers(preset, stage.name) if preset else []
        tables = [Layer(layer.name, {k: v for k, v in layer.values.items() if k != "model"}) for layer in layers]
        return [*tables, *own], preset
    if any(key.startswith("model.") for key in keys):
        return [*preset_layers(DEFAULT_PRESET, stage.name), *own], DEFAULT_PRESET
    return own, None


def _start_from(keys: Mapping[str, Leaf], own: Sequence[Layer]) -> str | None:
    """The model that a stage starts from: `--from`, or the stage's own default."""
    if "train.start_from" not in keys:
        return None
    ref = keys["train.start_from"].field.default
    for layer in own:
        ref = layer.values.get("train.start_from", layer.values.get("train", {}).get("start_from", ref))
    return None if ref in (None, "none") else str(ref)


def _parent_preset(ref: str, runs_dir: Path) -> str | None:
    """The preset of the run that a model came from, if it is known here."""
    try:
        parent = find_model(ref, runs_dir).run
    except UserError:  # the stage itself says so, with its own words
        return None
    found = parent.info().get("preset") if parent else None
    return found if found in preset_names() else None


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
    preset: str | None = None,
) -> None:
    """Run a stage from the command line, or go on with its newest unfinished run."""
    if resume:
        given = [layer.name for layer in flags] + (["--set"] if set else []) + (["--config"] if config else [])
        if given or preset or name:
            what = (
                f"--resume goes on with the stored configuration; {(given or ['--preset/--name'])[0]} would change it"
            )
            raise UserError(what, f"leave it out, or start a new run: mmcli {stage.name} --from latest ...")
        resume_run(find_unfinished(runs_dir, stage.name), json=json)
        return
    layers, preset = stage_layers(stage, flags, config=config, set=set, preset=preset, runs_dir=runs_dir)
    resolved: Resolved[Any] = resolve(stage.config, layers)
    execute(stage, resolved, runs_dir, name=name, preset=preset, json=json)


def execute(
    stage: Stage, resolved: Resolved[Any], runs_dir: Path, *, name: str | None, preset: str | None, json: bool = False
) -> Run:
    """Run a stage in a new run folder."""
    stage_function(stage)  # a plugin that cannot be imported leaves no run behind
    run = Run.create(runs_dir, stage.name, name or preset or "run")
    run.update(preset=preset, sources=dict(resolved.sources))
    run.write_config(to_tables(resolved.config))
    _work(stage, resolved, run, resume=False, json=json)
    return run


def resume_run(run: Run, *, json: bool = False) -> Run:
    """Go on with a run from its stored configuration and newest whole checkpoint."""
    stage = load_stage(run.stage)
    stored: Resolved[Any] = resolve(stage.config, [Layer(str(run.path / "config.toml"), run.read_config())])
    sources = run.info().get("sources") or stored.sources
    _work(stage, Resolved(stored.config, sources), run, resume=True, json=json)
    return run


def _work(stage: Stage, resolved: Resolved[Any], run: Run, *, resume: bool, json: bool) -> None:
    """Call the stage's function and keep the run's state true, whatever happens."""
    import os
    import shutil

    from mmcli.data.config import DataConfig
    from mmcli.data.sources.source import pin_data

    report = reporter()
    function = stage_function(stage)
    run.update(state="running", pid=os.getpid())
    try:
        config = resolved.config
        if isinstance(data := getattr(config, "data", None), DataConfig):
            config = dataclasses.replace(config, data=pin_data(data, run))
        context = StageContext(run, report, Resolved(config, resolved.sources), resume)
        result: Mapping[str, Any] = function(config, context) or {}
    except Interrupted as stopped:
        run.update(state="stopped", reason=stopped.what)
        raise
    except KeyboardInterrupt:
        what = f"stopped by SIGINT; {run.path} keeps what was saved"
        run.update(state="stopped", reason=what)
        raise Interrupted(what, f"go on: mmcli resume {run.number}", signal.SIGINT) from None
    except BaseException as error:
        if isinstance(error, UserError) and not resume and not run.checkpoints.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # nothing was made: leave no empty run behind
        else:
            reason = error.what if isinstance(error, MmcliError) else f"{type(error).__name__}: {error}"
            run.update(state="failed", reason=reason)
        raise
    finally:
        report.close()
    run.update(**{"state": "finished", **result})
    if json:
        print_json({"run": run.name, "path": str(run.path), **run.info()})
