"""The life of a run: layers of values -> config -> run folder, locked -> the stage's function -> state.

Nothing is printed here, and torch is imported only to find the device: the command line and Python call the same
functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcli import plugins
from mmcli.config import (
    DEFAULT,
    Layer,
    Resolved,
    follows_device,
    leaves,
    merge_layers,
    preset_at_width,
    preset_layers,
    preset_names,
    read_toml,
    resolve,
    to_tables,
)
from mmcli.errors import Interrupted, MmcliError, Stopped, Terminated, UserError, did_you_mean
from mmcli.find import References
from mmcli.inputs import check_allowed, config_input, has_inputs, pin_inputs
from mmcli.ranks import Ranks, find_place
from mmcli.run import RESOLVED, FollowedRun, Run
from mmcli.stage import Reporter, Silent, Stage, StageContext, Trial

DEFAULT_PRESET = "tiny"


def load_stage(name: str) -> Stage:
    """The stage of this name, built in or from a plugin.

    Raises:
        UserError: there is none, or several packages claim the name.
        MmcliError: it is there and broken.
    """
    entries = plugins.stages()
    if name not in entries:
        raise UserError(f'there is no stage "{name}"', did_you_mean(name, list(entries)))
    return plugins.load(entries[name], Stage)


def _function(stage: Stage) -> Callable[[Any, StageContext], Mapping[str, Any] | None]:
    """The function that a stage's `run` names.

    Raises:
        MmcliError: it cannot be imported.
    """
    function: Callable[[Any, StageContext], Mapping[str, Any] | None]
    function = plugins.load_function(stage.run, f'stage "{stage.name}"')
    return function


# Layers


def stage_layers(
    stage: Stage,
    own: Sequence[Layer],
    *,
    runs_dir: Path,
    preset: str | None = None,
    config_file: Path | None = None,
) -> tuple[list[Layer], str | None]:
    """The layers of a stage's configuration, the later winning, and the preset they rest on.

    Without `preset` the preset of the model it starts from is taken, else, for a stage that builds a model, `tiny`.

    Args:
        own: what the person sets, the later winning; it wins over `config_file` (TOML).

    Raises:
        UserError: no such preset, the file cannot be read, or an unknown key or a wrong type in `own`.
    """
    return _layers(stage, own, References(runs_dir), preset, config_file)


def _layers(
    stage: Stage, own: Sequence[Layer], references: References, preset: str | None, config_file: Path | None
) -> tuple[list[Layer], str | None]:
    if config_file is not None:
        own = [Layer(str(config_file), read_toml(config_file)), *own]
    keys = {leaf.key: leaf.default for leaf in leaves(stage.config)}
    set_values, _ = merge_layers(stage.config, [stage.layer, *own])
    parent = set_values.get("train.start_from", keys.get("train.start_from"))
    builds_model = any(key.startswith("model.") for key in keys)
    has_shape = builds_model and (preset is not None or parent is None)
    width = set_values.get("model.dim")
    if preset is None and parent is not None:
        preset, width = _preset_and_width(parent, references)
    elif preset is None and builds_model:
        preset = DEFAULT_PRESET
    wanted = set_values.get("train.device", keys.get("train.device"))
    of_preset = preset_layers(preset, stage.name, _device_type(preset, stage, wanted)) if preset is not None else []
    if preset is not None and width is not None and set_values.get("optim.optimizer") != "muon":  # scaled by shape
        of_preset += preset_at_width(preset, stage.name, width)
    if not has_shape:  # the shape is the parent's own; the preset says how such a model is trained in this stage
        of_preset = [Layer(x.name, {k: v for k, v in x.values.items() if k != "model"}) for x in of_preset]
    return [stage.layer, *of_preset, *own], preset


def _device_type(preset: str, stage: Stage, wanted: str | None) -> str | None:
    """The type of the device `wanted`, for a preset to which it matters; "auto" takes torch, which is slow to load."""
    if wanted is None or not follows_device(preset, stage.name):
        return None
    if wanted != "auto":
        return wanted.partition(":")[0]
    from mmcli.model.device import choose_device

    return choose_device().type


def _preset_and_width(ref: str, references: References) -> tuple[str | None, int | None]:
    """The preset of the run that a model came from and the width of the model, as far as they are known here."""
    try:
        parent = references.model(ref).run
    except UserError:  # the stage itself says so, with its own words
        parent = None
    if parent is None or (preset := parent.info().get("preset")) not in preset_names():
        return None, None
    width = None
    with contextlib.suppress(UserError):  # damaged; the model itself can be whole
        width = parent.read_config(RESOLVED).get("model", {}).get("dim")
    return preset, width


# Runs


def start(
    stage: Stage,
    own: Sequence[Layer] = (),
    *,
    runs_dir: Path,
    preset: str | None = None,
    config_file: Path | None = None,
    name: str | None = None,
    report: Reporter | None = None,
) -> Run:
    """Run a stage in a new run folder, to its end.

    Args:
        own: the values that are set (see `stage_layers`).
        name: of the run folder, after its number and stage; None: the preset's.
        report: where the stage says what it does; None: nowhere.

    Raises:
        UserError: a value, the data or a model cannot be used; the run folder is gone again.
        Interrupted: it was stopped; `resume` continues it.
        MmcliError: it failed.
    """
    report = report or Silent()
    with join_ranks() as ranks:
        if not ranks.is_writer:
            return _follow(ranks, report)
        return _start(stage, own, runs_dir, preset, config_file, name, report, ranks)


def _start(
    stage: Stage,
    own: Sequence[Layer],
    runs_dir: Path,
    preset: str | None,
    config_file: Path | None,
    name: str | None,
    report: Reporter,
    ranks: Ranks,
) -> Run:
    references = References(runs_dir)
    layers, preset = _layers(stage, own, references, preset, config_file)
    resolved: Resolved[Any] = resolve(stage.config, layers)
    _check_loggers(resolved.config)
    _check_ranks(stage, resolved, ranks)
    _function(stage)  # a plugin that cannot be imported leaves no run behind
    run = Run.create(runs_dir, stage.name, name or preset or "run")
    try:
        with run.lock() as held:
            run.update(preset=preset, sources=dict(resolved.sources))
            context = StageContext(run, report, resolved, references=references, ranks=ranks)
            tables = to_tables(resolved.config)
            pin_inputs(
                context, {"config": config_input(tables)}
            )  # before the configuration, which makes the run resumable
            run.write_config(tables)
            _work(stage, context, held)
    except UserError:
        if not run.checkpoints.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # nothing was made: leave no empty run behind
        raise
    return run


def measure(
    stage: Stage, resolved: Resolved[Any], run: Run, *, runs_dir: Path, trial: Trial, report: Reporter | None = None
) -> dict[str, Any]:
    """Do a few steps of a stage in a run folder that nobody keeps; what they took, and what all of them would.

    Args:
        runs_dir: of the models and tokenizers that the stage may start from.

    Raises:
        MmcliError: as `start`.
    """
    context = StageContext(run, report or Silent(), resolved, references=References(runs_dir), trial=trial)
    with run.lock() as held:
        run.update(sources=dict(resolved.sources))
        _work(stage, context, held)
    return run.info()


def _check_loggers(config: Any) -> None:
    """Refuse a `--log` whose package is not installed.

    Raises:
        UserError: it is not.
    """
    from mmcli.train.config import TrainConfig

    train = getattr(config, "train", None)
    if isinstance(train, TrainConfig) and train.loggers:
        from mmcli.train.loggers import check_loggers

        check_loggers(train.loggers)


def resume(
    run: Run,
    report: Reporter | None = None,
    *,
    allow: Sequence[str] = (),
    lr_scale: float | None = None,
    shard: bool | None = None,
) -> Run:
    """Continue a run from its stored configuration and its latest valid checkpoint, to its end.

    Args:
        allow: kinds of input that may have changed since the run began, such as `data` (see `mmcli.inputs`).
        lr_scale: factor of every learning rate of its configuration, from now on; recorded in the run. None: as before.
        shard: whether the ranks split the weights, from now on; recorded in the run. None: as before.

    Raises:
        UserError: it is finished, or still running, has no stored configuration, one of its files is damaged, or what
            it reads has changed; a factor that is not positive.
        Interrupted: it was stopped again.
        MmcliError: it failed.
    """
    report, allowed = report or Silent(), check_allowed(allow)
    with join_ranks() as ranks:
        if not ranks.is_writer:
            return _follow(ranks, report)
        return _resume(run, report, allowed, lr_scale, shard, ranks)


def _resume(
    run: Run,
    report: Reporter,
    allowed: frozenset[str],
    lr_scale: float | None,
    shard: bool | None,
    ranks: Ranks,
) -> Run:
    with run.lock() as held:  # first: what run.json says holds only then
        run.read_info()
        if run.info()["state"] == "finished":
            raise UserError(f"{run.name} is finished", f"train on from it: mmcli {run.stage} --from {run.reference}")
        tables = _stored_config(run)
        stage = load_stage(run.stage)
        pinned = has_inputs(run)
        own = Resolved[Any](None, {})
        if pinned:
            pin_inputs(StageContext(run, report, own, resume=True, allow=allowed), {"config": config_input(tables)})
        else:
            report.warn(f"{run.name} was started before runs kept what they read: a change since cannot be told")
        if lr_scale is not None:
            _scale_rate(run, lr_scale)
        if shard is not None:
            run.record_choice("shard", shard)
        resolved = _stored_values(run, stage, tables)
        _check_ranks(stage, resolved, ranks)
        references = References(run.path.parent)
        _work(stage, StageContext(run, report, resolved, True, allowed, references, ranks=ranks), held)
    return run


def _stored_values(run: Run, stage: Stage, tables: Mapping[str, Any]) -> Resolved[Any]:
    """The configuration of a run, and where its values came from when it began."""
    stored: Resolved[Any] = resolve(stage.config, [Layer(str(run.path / "config.toml"), tables)])
    return Resolved(stored.config, run.info().get("sources") or stored.sources)


# Ranks


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """This process among those that train together, all of which come here; alone where it was started alone.

    Raises:
        UserError: the others cannot be met.
    """
    place = find_place()
    if place.world == 1:
        yield Ranks()
        return
    from mmcli.train.ranks import joined

    with joined(place) as ranks:
        yield ranks


def _check_ranks(stage: Stage, resolved: Resolved[Any], ranks: Ranks) -> None:
    """Refuse ranks that would have nothing to do."""
    train = getattr(resolved.config, "train", None)
    if ranks.world == 1:
        return
    if train is None:
        raise UserError(f"mmcli {stage.name} works in one process, not in {ranks.world}", "start it once")
    if train.batch_size < ranks.world:
        source = resolved.sources.get("train.batch_size", DEFAULT)
        what = f"train.batch_size = {train.batch_size} (from {source}) is below the {ranks.world} processes"
        raise UserError(what, f"give --batch-size {ranks.world} or more, or fewer processes")


def _follow(ranks: Ranks, report: Reporter) -> Run:
    """Take part in the run of rank 0, once that has prepared it: what it made and chose is read, nothing is written.

    Until then this rank encodes what that one tells it to.
    """
    message: Any = ranks.broadcast(None)
    while "encode" in message:
        from mmcli.data.encode.parts import assist

        assist(message["encode"], ranks)
        message = ranks.broadcast(None)
    run = FollowedRun(Path(message["run"]))
    if message["trains"]:
        stage = load_stage(run.stage)
        resolved = _stored_values(run, stage, run.read_config())
        allowed, references = frozenset(message["allow"]), References(run.path.parent)
        context = StageContext(run, report, resolved, message["resume"], allowed, references, ranks=ranks)
        try:
            _work(stage, context, held=True)
        except MmcliError as error:
            if not error.of_every_rank:  # rank 0 says it, and has the exit code
                raise
    return run


def _stored_config(run: Run) -> dict[str, Any]:
    """The tables of config.toml.

    Raises:
        UserError: there is none, it is damaged, or resolved.toml is.
    """
    if not (run.path / "config.toml").is_file():
        raise UserError(f"{run.name} has no stored configuration", "start it again")
    tables = run.read_config()
    chosen = run.read_config(RESOLVED)
    if not chosen and run.checkpoints.is_dir() and has_inputs(run):
        what = f"{run.path / RESOLVED} is missing"
        raise UserError(what, f"restore it from a copy, or start a new run: mmcli {run.stage}")
    return tables


def _scale_rate(run: Run, factor: float) -> None:
    """Record another learning rate: in resolved.toml, where the training finds it, and in run.json for people."""
    if not (0.0 < factor < math.inf):
        raise UserError(f"--lr-scale {factor} is not a positive number", "give a factor such as 0.5")
    before = run.read_config(RESOLVED).get("lr_scale", 1.0)
    run.record_choice("lr_scale", factor)
    info = run.info()
    change = {"after_step": info.get("steps_done", 0), "lr_scale": factor, "before": before}
    run.update(changes=[*info.get("changes", []), change])


def _work(stage: Stage, context: StageContext, held: bool) -> None:
    """Call the stage's function and keep the run's state true, whatever happens.

    Args:
        held: the run is locked; False where its file system has no locks.
    """
    from mmcli.data.config import DataConfig
    from mmcli.data.sources.pinning import pin_data

    function = _function(stage)
    run, report = context.run, context.report
    run.begin()
    if not held:
        report.warn(f"{run.path.parent} has no file locks: nothing keeps a second process from resuming {run.name}")
    try:
        config = context.resolved.config
        if isinstance(data := getattr(config, "data", None), DataConfig):
            config = dataclasses.replace(config, data=pin_data(data, run))
        context = dataclasses.replace(context, resolved=Resolved(config, context.resolved.sources))
        result = function(config, context) or {}
        context.tell_prepared(trains=False)  # where it trained, the others know that since it began
    except Stopped as stopped:
        _end(run, "stopped", stopped.what, report)
        raise
    except (KeyboardInterrupt, Terminated) as error:
        number = error.signal_number if isinstance(error, Terminated) else signal.SIGINT
        what = f"stopped by {signal.Signals(number).name}; {run.path} keeps what was saved"
        _end(run, "stopped", what, report)
        ended = Interrupted(what, f"resume it: mmcli resume {run.reference}", number)
        ended.of_every_rank = False  # the others are at work, and learn it from the connection
        raise ended from None
    except BaseException as error:
        what = error.what if isinstance(error, MmcliError) else f"{type(error).__name__}: {error}"
        _end(run, "failed", what, report)
        raise
    finally:
        report.close()
    run.update(**{"state": "finished", **result})
    _report_page(run, report)


def _end(run: Run, state: str, reason: str, report: Reporter) -> None:
    """Keep how a run ended. On a full disk it stays `running` without its lock, which reads as stopped."""
    with contextlib.suppress(MmcliError, OSError):
        run.update(state=state, reason=reason)
    _report_page(run, report)


def _report_page(run: Run, report: Reporter) -> None:
    """Write report.html of a run that trained. Whatever happens there, the run is as it is."""
    if not run.is_writable or not run.metrics.is_file():
        return
    try:
        from mmcli.report.page import write_report

        write_report(run)
    except Exception as error:
        report.warn(f"{run.path} has no new report.html ({error}); make it with: mmcli runs report {run.reference}")
