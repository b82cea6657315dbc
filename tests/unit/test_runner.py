"""The life of a run, called from Python: layers, config, a locked folder, the stage's function, the state."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmcli import runner
from mmcli.config import Layer, option, resolve
from mmcli.errors import Interrupted, MmcliError, UserError
from mmcli.model.config import ModelConfig
from mmcli.run import Run, list_runs
from mmcli.stage import Silent, Stage, StageContext
from mmcli.stages import PRETRAIN
from mmcli.train.config import OptimConfig, TrainConfig

Function = Callable[[Any, StageContext], Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = option(5, "steps")
    name: str | None = option(None, "a name")
    optim: OptimConfig = option(OptimConfig, "the optimizer")


@dataclass(frozen=True, kw_only=True)
class ModelStage:
    model: ModelConfig = option(ModelConfig, "the model")
    train: TrainConfig = option(TrainConfig, "the training")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Function], Stage]:
    """`stage(function)`: a stage whose work is that function, known by its name to `load_stage` too."""

    def make(function: Function) -> Stage:
        module = ModuleType("made_up_stage")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "made_up_stage", module)
        made = Stage(
            name="made", summary="", config=Config, run="made_up_stage:run", defaults={"optim.lr": 0.25, "steps": 6}
        )
        monkeypatch.setattr(runner, "load_stage", {"made": made}.__getitem__)
        return made

    return make


def nothing(config: Any, context: StageContext) -> None:
    return None


# A new run


def test_a_run_from_values_to_its_state(
    stage: Callable[[Function], Stage], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def work(config: Config, context: StageContext) -> dict[str, Any]:
        seen.append((config, context))
        assert context.run.info()["state"] == "running"
        return {"steps_done": config.steps}

    run = runner.start(stage(work), [Layer("mine", {"steps": 3})], runs_dir=tmp_path / "runs", name="x")
    assert run == Run(tmp_path / "runs" / "0001-made-x")
    ((config, context),) = seen
    assert (config.steps, config.optim.lr, context.resume, context.run) == (3, 0.25, False, run)
    assert isinstance(context.report, Silent)
    info = run.info()
    assert (info["state"], info["steps_done"], info["preset"]) == ("finished", 3, None)
    assert (info["sources"]["steps"], info["sources"]["optim.lr"]) == ("mine", "stage made")
    stored = run.read_config()
    assert (stored["steps"], stored["name"], stored["optim"]["lr"]) == (3, "none", 0.25)
    assert set(stored["optim"]) == set(OptimConfig.__dataclass_fields__)
    assert capfd.readouterr() == ("", "")


def test_a_file_is_below_the_values_and_above_the_stage(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("steps = 8\n[optim]\nlr = 0.5\n")
    run = runner.start(stage(nothing), [Layer("v", {"steps": 9})], runs_dir=tmp_path / "runs", config_file=file)
    stored = run.read_config()
    assert (stored["steps"], stored["optim"]["lr"]) == (9, 0.5)
    assert run.info()["sources"]["optim.lr"] == str(file)


def test_what_a_stage_says_of_its_state_counts(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    run = runner.start(stage(lambda config, context: {"state": "stopped", "reason": "why"}), runs_dir=tmp_path)
    assert (run.info()["state"], run.info()["reason"]) == ("stopped", "why")


def test_a_mistake_leaves_no_run_behind(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    def refuse(config: Config, context: StageContext) -> None:
        raise UserError("no such data", "name another")

    with pytest.raises(UserError, match="no such data"):
        runner.start(stage(refuse), runs_dir=tmp_path)
    with pytest.raises(UserError, match="unknown key"):
        runner.start(stage(nothing), [Layer("v", {"step": 3})], runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_after_a_checkpoint_keeps_the_run(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    def refuse(config: Config, context: StageContext) -> None:
        context.run.checkpoints.mkdir()
        raise UserError("bad line", "fix it")

    with pytest.raises(UserError, match="bad line"):
        runner.start(stage(refuse), runs_dir=tmp_path)
    (run,) = list_runs(tmp_path)
    assert (run.info()["state"], run.info()["reason"]) == ("failed", "bad line")


@pytest.mark.parametrize(
    ("raised", "state", "reason"),
    [
        (MmcliError("loss became NaN", "lower --lr"), "failed", "loss became NaN"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (Interrupted("stopped by SIGTERM", "resume it", signal.SIGTERM), "stopped", "stopped by SIGTERM"),
    ],
    ids=["ours", "any", "signal"],
)
def test_a_failure_is_kept_in_the_run(
    stage: Callable[[Function], Stage], tmp_path: Path, raised: Exception, state: str, reason: str
) -> None:
    def fail(config: Config, context: StageContext) -> None:
        raise raised

    with pytest.raises(type(raised)):
        runner.start(stage(fail), runs_dir=tmp_path)
    (run,) = list_runs(tmp_path)
    assert (run.info()["state"], run.info()["reason"]) == (state, reason)
    with run.lock() as held:
        assert held


def test_ctrl_c_stops_the_run_and_says_how_to_resume_it(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    def interrupt(config: Config, context: StageContext) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        runner.start(stage(interrupt), runs_dir=tmp_path)
    assert caught.value.exit_code == 130 and "mmcli resume 1" in caught.value.fix
    assert list_runs(tmp_path)[0].info()["state"] == "stopped"


def test_a_function_that_cannot_be_imported_leaves_no_run_behind(tmp_path: Path) -> None:
    made = Stage(name="made", summary="", config=Config, run="no_such_module:run")
    with pytest.raises(MmcliError, match='stage "made" cannot run: ModuleNotFoundError'):
        runner.start(made, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_run_is_locked_while_it_works(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    def work(config: Config, context: StageContext) -> None:
        with pytest.raises(UserError, match="is still running"):
            runner.resume(context.run)

    run = runner.start(stage(work), runs_dir=tmp_path)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.toml", "inputs.json", "run.json"]


def test_without_locks_it_says_so_and_works(
    stage: Callable[[Function], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    warned = []

    class Report(Silent):
        def warn(self, text: str) -> None:
            warned.append(text)

    def stop(config: Config, context: StageContext) -> None:
        context.run.update(steps_done=1)
        raise Interrupted("stopped", "resume it", signal.SIGINT)

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Interrupted):
        runner.start(stage(stop), runs_dir=tmp_path, report=Report())
    assert warned == [f"{tmp_path} has no file locks: nothing keeps a second process from resuming 0001-made-run"]
    stage(nothing)
    assert runner.resume(Run(tmp_path / "0001-made-run")).info()["state"] == "finished"


# Resume


def stopped(make: Callable[[Function], Stage], runs_dir: Path) -> Run:
    def stop(config: Config, context: StageContext) -> None:
        raise Interrupted("stopped", "resume it", signal.SIGINT)

    with pytest.raises(Interrupted):
        runner.start(make(stop), [Layer("mine", {"steps": 3})], runs_dir=runs_dir, name="x")
    return list_runs(runs_dir)[-1]


def test_resume_has_the_stored_values_and_their_sources(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    run = stopped(stage, tmp_path)
    seen: list[Any] = []
    stage(lambda config, context: seen.append((config, context)))
    assert runner.resume(run) == run
    ((config, context),) = seen
    assert (config.steps, config.optim.lr, context.resume) == (3, 0.25, True)
    assert (context.resolved.sources["steps"], context.resolved.sources["optim.lr"]) == ("mine", "stage made")
    assert run.info()["state"] == "finished" and "reason" not in run.info()


def test_a_stored_configuration_wins_over_a_stage_that_changed(
    stage: Callable[[Function], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(stage, tmp_path)
    seen: list[Any] = []
    made = stage(lambda config, context: seen.append(config))
    changed = Stage(name="made", summary="", config=Config, run=made.run, defaults={"optim.lr": 0.125})
    monkeypatch.setattr(runner, "load_stage", {"made": changed}.__getitem__)
    runner.resume(run)
    assert seen[0].optim.lr == 0.25


def test_what_cannot_be_resumed_says_why(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    finished = runner.start(stage(nothing), runs_dir=tmp_path)
    with pytest.raises(UserError, match="is finished") as caught:
        runner.resume(finished)
    assert "--from 1" in caught.value.fix
    with pytest.raises(UserError, match="has no stored configuration"):
        runner.resume(Run.create(tmp_path, "made", "x"))
    run = stopped(stage, tmp_path)
    with run.lock(), pytest.raises(UserError, match=f"{run.name} is still running"):
        runner.resume(run)
    assert json.loads((run.path / "run.json").read_text())["state"] == "stopped"


def test_a_failed_resume_keeps_the_run(stage: Callable[[Function], Stage], tmp_path: Path) -> None:
    run = stopped(stage, tmp_path)

    def refuse(config: Config, context: StageContext) -> None:
        raise UserError("the data is gone", "bring it back")

    stage(refuse)
    with pytest.raises(UserError):
        runner.resume(run)
    assert (run.info()["state"], run.info()["reason"]) == ("failed", "the data is gone")


# Layers


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


BUILDS = Stage(name="pretrain", summary="", config=ModelStage, run="m:f")


def test_a_stage_that_builds_a_model_rests_on_tiny_or_on_the_preset_asked_for(tmp_path: Path) -> None:
    layers, preset = runner.stage_layers(BUILDS, [Layer("v", {})], runs_dir=tmp_path)
    assert (names(layers), preset) == (["stage pretrain", "preset tiny", "v"], "tiny")
    layers, preset = runner.stage_layers(BUILDS, [], runs_dir=tmp_path, preset="base")
    assert preset == "base"
    assert names(layers)[:2] == ["stage pretrain", "preset small"] and names(layers)[-1] == "preset base"


@pytest.mark.parametrize(
    ("device", "found", "rows"), [("auto", "cpu", 8), ("auto", "cuda", 32), ("cpu", "cuda", 8), ("cuda:1", "cpu", 32)]
)
def test_a_preset_takes_the_values_of_the_device(
    device: str, found: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcli.model.device.choose_device", lambda: SimpleNamespace(type=found))
    stage = runner.load_stage("pretrain")
    own = [Layer("--device", {"train.device": device})]
    layers, _ = runner.stage_layers(stage, own, runs_dir=tmp_path, preset="base")
    resolved = resolve(stage.config, layers)
    assert resolved.config.train.batch_size == rows
    assert resolved.sources["train.batch_size"] == ("preset small on cpu" if rows == 8 else "preset small")
    asked = [*own, Layer("--batch-size", {"train.batch_size": 5})]
    layers, _ = runner.stage_layers(stage, asked, runs_dir=tmp_path, preset="base")
    assert resolve(stage.config, layers).config.train.batch_size == 5


def test_the_shape_of_a_parent_is_its_own_and_its_preset_says_how_it_trains(tmp_path: Path) -> None:
    parent = Run.create(tmp_path, "pretrain", "small")
    parent.model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (parent.model / name).write_text("{}")
    parent.update(preset="small")
    for values in ({"train.start_from": "1", "train.device": "cuda"}, {"train": {"start_from": "1", "device": "cuda"}}):
        layers, preset = runner.stage_layers(BUILDS, [Layer("--from", values)], runs_dir=tmp_path)
        assert (names(layers), preset) == (["stage pretrain", "preset small", "--from"], "small")
        assert "model" not in layers[1].values and layers[1].values["train"]["batch_size"] == 32
    starting = Stage(name="sft", summary="", config=ModelStage, run="m:f", defaults={"train.start_from": "1"})
    assert runner.stage_layers(starting, [], runs_dir=tmp_path)[1] == "small"
    none = [Layer("--from", {"train.start_from": "none"})]
    assert runner.stage_layers(starting, none, runs_dir=tmp_path)[1] == "tiny"


def test_a_value_where_a_table_belongs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'unknown key "train" \(from mine\.toml\)'):
        runner.stage_layers(BUILDS, [Layer("mine.toml", {"train": 3})], runs_dir=tmp_path)


def test_a_stage_without_a_model_of_its_own_takes_the_training_of_a_preset_alone(tmp_path: Path) -> None:
    sft = runner.load_stage("sft")
    layers, preset = runner.stage_layers(sft, [], runs_dir=tmp_path, preset="tiny")
    assert preset == "tiny"
    assert layers[1].values == {"optim": {"lr": 2e-3}, "data": {"seq_len": 256}, "train": {"batch_size": 8}}


# The stages


def test_stages_are_found_by_name() -> None:
    assert runner.load_stage("pretrain") is PRETRAIN
    with pytest.raises(UserError, match='there is no stage "pretran"') as caught:
        runner.load_stage("pretran")
    assert caught.value.fix == 'did you mean "pretrain"?'


def test_importing_it_loads_neither_torch_nor_what_prints() -> None:
    heavy = ("torch", "rich", "typer", "datasets", "numpy")
    code = f"import sys, mmcli.runner; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
