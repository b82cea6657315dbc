"""What a training leaves to read, and the trackers of `--log`: their values, their resume, and their failures."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmcli.config import ConfigError, Layer, resolve
from mmcli.errors import UserError
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.stages import PretrainConfig
from mmcli.train import loggers
from mmcli.train.config import TrainConfig
from mmcli.train.journal import Journal, scalars
from mmcli.train.loggers import LOGGERS, LogRun, check_loggers


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def a_context(tmp_path: Path) -> tuple[StageContext, Told]:
    found = [path for path in tmp_path.iterdir() if path.is_dir()]
    run = Run(found[0]) if found else Run.create(tmp_path, "pretrain", "tiny")
    report = Told()
    return StageContext(run, report, resolve(PretrainConfig, [Layer("--lr", {"optim.lr": 1e-3})])), report


class Seen:
    """A tracker that keeps what it gets."""

    def __init__(self, run: LogRun) -> None:
        self.run, self.values, self.samples, self.finished = run, [], [], False
        print("a tracker that prints")
        OPENED.append(self)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.values.append((step, dict(values)))

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.samples.append((step, prompt + text))

    def finish(self) -> None:
        self.finished = True


OPENED: list[Any] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    OPENED.clear()
    monkeypatch.setitem(LOGGERS, "wandb", Seen)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    yield OPENED


def test_lines_and_samples_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    context, _ = a_context(tmp_path)
    with contextlib.closing(Journal(context, from_step=0)) as journal:
        for step in range(4):
            journal.sample(step + 1, "p", f" after {step + 1}")
            journal.write({"step": step, "loss": 1.0})
    with contextlib.closing(Journal(context, from_step=2)) as journal:
        journal.write({"step": 2, "loss": 5.0})
    lines = [json.loads(line) for line in context.run.metrics.read_text().splitlines()]
    samples = [json.loads(line) for line in (context.run.path / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 1.0), (1, 1.0), (2, 5.0)]
    assert samples == [{"step": n, "prompt": "p", "text": f" after {n}"} for n in (1, 2)]


def test_a_tracker_gets_config_values_and_samples(
    tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    context, report = a_context(tmp_path)
    stdout = sys.stdout
    with contextlib.closing(Journal(context, from_step=0, loggers=["wandb"])) as journal:
        journal.sample(1, "Once", " upon")
        journal.write({"step": 0, "loss": 2.5, "val_loss": 3, "expert_load": [0.25, 0.75], "bad": float("nan")})
    (tracker,) = seen
    assert tracker.run.config["optim.lr"] == 1e-3 and tracker.run.name.startswith("0001-pretrain-tiny-")
    assert tracker.values == [(0, {"loss": 2.5, "val_loss": 3.0, "expert_load/0": 0.25, "expert_load/1": 0.75})]
    assert tracker.samples == [(0, "Once upon")] and tracker.finished
    assert report.warnings == [] and sys.stdout is stdout
    assert capsys.readouterr().out == ""  # stdout carries the result alone


def test_a_resumed_run_goes_on_under_the_same_identity_and_repeats_nothing(tmp_path: Path, seen: list[Any]) -> None:
    context, _ = a_context(tmp_path)
    with contextlib.closing(Journal(context, from_step=0, loggers=["wandb"])) as journal:
        for step in range(4):
            journal.write({"step": step, "loss": 1.0})
    with contextlib.closing(Journal(context, from_step=2, loggers=["wandb"])) as journal:
        for step in range(2, 6):
            journal.write({"step": step, "loss": 1.0})
    one, other = seen
    assert one.run.id == other.run.id == context.run.info()["log"]["id"] and one.run.name == other.run.name
    assert [step for step, _ in other.values] == [4, 5]
    assert len(context.run.metrics.read_text().splitlines()) == 6


@pytest.mark.parametrize("where", ["open", "log", "exit"])
def test_a_tracker_that_fails_is_warned_of_once(
    tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Failing(Seen):
        def __init__(self, run: LogRun) -> None:
            if where == "open":
                raise ConnectionError("no route\nto host")
            super().__init__(run)

        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise SystemExit(1) if where == "exit" else ConnectionError("no route to host")

    monkeypatch.setitem(LOGGERS, "wandb", Failing)
    context, report = a_context(tmp_path)
    with contextlib.closing(Journal(context, from_step=0, loggers=["wandb"])) as journal:
        for step in range(50):
            journal.write({"step": step, "loss": 1.0})
            time.sleep(0.001)
    assert len(report.warnings) == 1 and report.warnings[0].startswith("--log wandb stopped: ")
    assert where == "exit" or "no route to host" in report.warnings[0]
    assert len(context.run.metrics.read_text().splitlines()) == 50


def test_a_tracker_that_blocks_costs_no_time(tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Blocking(Seen):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            free.wait(20)

    monkeypatch.setitem(LOGGERS, "wandb", Blocking)
    monkeypatch.setattr(loggers, "QUEUED", 5)
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.2)
    context, report = a_context(tmp_path)
    started = time.monotonic()
    with contextlib.closing(Journal(context, from_step=0, loggers=["wandb"])) as journal:
        for step in range(200):
            journal.write({"step": step, "loss": 1.0})
    assert time.monotonic() - started < 5
    free.set()
    assert report.warnings == ["--log wandb is too slow: the last values were not sent; metrics.jsonl has them"]
    assert len(context.run.metrics.read_text().splitlines()) == 200


def test_a_missing_package_is_refused_at_the_start_and_told_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(UserError, match="--log trackio needs the package trackio") as refused:
        check_loggers(["trackio"])
    assert refused.value.fix == "pip install 'mmcli[trackio]'"
    context, report = a_context(tmp_path)
    Journal(context, from_step=3, loggers=["trackio"]).close()
    assert len(report.warnings) == 1 and "pip install 'mmcli[trackio]'" in report.warnings[0]


def test_names_of_trackers_are_a_list_with_commas() -> None:
    assert TrainConfig(log="tensorboard, wandb,tensorboard").loggers == ("tensorboard", "wandb")
    with pytest.raises(ConfigError, match='there is no "tensorbord"') as refused:
        TrainConfig(log="tensorbord")
    assert refused.value.fix == 'did you mean "tensorboard"?'


def test_scalars_are_finite_numbers() -> None:
    assert scalars({"step": 3, "a": 1, "b": None, "c": float("inf"), "d": [1, 2.5]}) == {"a": 1, "d/0": 1, "d/1": 2.5}


def test_tensorboard_files_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra mmcli[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    context, report = a_context(tmp_path)
    for start, end in ((0, 4), (2, 6)):  # killed after step 3, resumed from a checkpoint at 2
        with contextlib.closing(Journal(context, from_step=start, loggers=["tensorboard"])) as journal:
            for step in range(start, end):
                journal.write({"step": step, "loss": 10.0 - step})
            journal.sample(end, "Once", " upon")
    assert report.warnings == []
    read = EventAccumulator(str(context.run.path / "tensorboard"))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("loss")] == [(n, 10.0 - n) for n in range(6)]
    assert {"config/text_summary", "sample/text_summary"} <= set(read.Tags()["tensors"])


def test_wandb_trackio_and_swanlab_are_called_as_they_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the names and arguments of the packages that are used (wandb 0.31, trackio 0.43, swanlab 0.10)."""
    calls: list[tuple[str, Any]] = []

    class Handle:
        def log(self, data: Mapping[str, Any], *, step: int) -> None:
            calls.append(("log", (dict(data), step)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(project: str, **options: Any) -> Handle:
        calls.append(("init", {"project": project, **options}))
        return Handle()

    settings = {"Settings": lambda **options: SimpleNamespace(api_key=None)}
    stand_ins = {
        "wandb": {"login": lambda prompt: False, "Table": lambda columns, data: data, **settings},
        "trackio": {"Markdown": str},
        "swanlab": {"Text": str, **settings},
    }
    run = LogRun(tmp_path, "0001-pretrain-tiny-ab12", "0" * 21, {"optim.lr": 1e-3})
    for name, members in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, **members))
        for key in ("MODE", "PROJECT"):
            monkeypatch.delenv(f"{name.upper()}_{key}", raising=False)
        calls.clear()
        logger = LOGGERS[name](run)
        logger.log(3, {"loss": 1.5})
        logger.sample(3, "Once", " upon")
        logger.finish()
        (_, opened), logged, (kind, (sample, step)), finished = calls
        assert (opened["project"], opened["resume"]) == ("mmcli", "allow")
        assert opened["config"] == {"optim.lr": 1e-3}
        assert name == "trackio" or (opened["id"], opened["mode"]) == ("0" * 21, "offline")  # nobody is logged in
        assert logged == ("log", ({"loss": 1.5}, 3)) and (kind, step) == ("log", 3) and "sample" in sample
        assert finished == ("finish", None)
