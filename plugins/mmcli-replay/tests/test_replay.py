"""The replay mixture: whole rows of old text in every step, old text found through the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmcli_replay import CONTINUE, ContinueConfig
from mmcli_replay.history import old_text
from mmcli_replay.training import mixed

from mmcli.config import Layer, resolve, to_tables
from mmcli.errors import UserError
from mmcli.run import ModelRef, Run
from mmcli.train.task import Task


def config(**values: Any) -> ContinueConfig:
    layer = {"data": {"sources": ["new.txt"]}, **values}
    return resolve(ContinueConfig, [Layer("test", layer)]).config


@pytest.mark.parametrize(("share", "size", "rows"), [(0.25, 32, 8), (0.1, 30, 3), (0.3, 10, 3), (0.5, 2, 1)])
def test_the_share_is_exact(share: float, size: int, rows: int) -> None:
    assert config(replay_share=share, train={"batch_size": size}).old_rows == rows


@pytest.mark.parametrize(
    ("share", "size", "said", "fix"),
    [
        (0.25, 10, "is 2.5 rows", "--batch-size 12"),
        (0.3, 32, "is 9.6 rows", "--batch-size 40"),
        (0.0, 32, "is not between 0 and 1", "pretrain --from"),
        (1.0, 32, "is not between 0 and 1", "pretrain --from"),
    ],
)
def test_a_share_that_gives_no_whole_rows_is_refused(share: float, size: int, said: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        config(replay_share=share, train={"batch_size": size})
    assert said in caught.value.what
    assert fix in caught.value.fix


def test_new_text_must_be_named() -> None:
    with pytest.raises(UserError) as caught:
        resolve(ContinueConfig, [])
    assert "needs new text" in caught.value.what
    assert "mmcli resume" in caught.value.fix


def test_the_defaults_of_the_stage() -> None:
    resolved = resolve(ContinueConfig, [CONTINUE.layer, Layer("test", {"data.sources": ["new.txt"]})])
    assert (resolved.config.train.start_from, resolved.config.optim.lr) == ("latest:pretrain", 2e-4)
    assert resolved.sources["optim.lr"] == "stage continue"


def test_a_stored_configuration_is_read_back() -> None:
    first = config(replay=["old.txt"], replay_share=0.5)
    assert resolve(ContinueConfig, [Layer("config.toml", to_tables(first))]).config == first


def task(name: str, evaluate: Callable[[Any], dict[str, float]] | None) -> Task:
    return Task(
        model=SimpleNamespace(),  # never run here
        accelerator=SimpleNamespace(),
        batches=lambda step: [f"{name} {step}"],
        loss=lambda model, batch: batch,
        steps_per_epoch=3.0 if name == "new" else 5.0,
        flops_per_token=1.0,
        save_model=lambda folder: None,
        evaluate=evaluate,
    )


def test_a_step_has_the_batches_of_both_and_nothing_but_the_step_decides_them() -> None:
    both = mixed(task("new", None), task("old", None))
    assert both.batches is not None
    assert both.batches(7) == ["new 7", "old 7"]
    assert both.steps_per_epoch == 3.0
    assert both.evaluate is None


def test_both_validations_are_logged_under_their_names() -> None:
    new, old = task("new", lambda model: {"val_loss": 1.0}), task("old", lambda model: {"val_loss": 2.0})
    for tasks, expected in (
        ((new, old), {"val_loss": 1.0, "val_old_loss": 2.0}),
        ((new, task("old", None)), {"val_loss": 1.0}),
        ((task("new", None), old), {"val_old_loss": 2.0}),
    ):
        both = mixed(*tasks)
        assert both.evaluate is not None
        assert both.evaluate(both.model) == expected
        assert {metric.name for metric in both.metrics} >= {"loss", "val_old_loss"}


def make_run(
    runs: Path, stage: str, sources: list[str], *, parent: str | None = None, columns: Any = "none", **more: Any
) -> Run:
    run = Run.create(runs, stage, "test")
    data = {"sources": sources, "val": "none", "val_fraction": 0.1, "val_tokens": 50 + run.number, "columns": columns}
    run.write_config({"data": data, "train": {"seed": run.number}, **more})
    run.model.mkdir()
    run.update(parent=parent)
    if parent is not None:
        run.choose("start_from", lambda: f"{parent}/model")
    return run


def test_old_text_is_that_of_every_pretraining_before(tmp_path: Path) -> None:
    first = make_run(tmp_path, "pretrain", ["a.txt", "b.txt"])
    second = make_run(tmp_path, "continue", ["c.txt"], parent=first.name, replay=["a.txt", "z.txt"])
    third = make_run(tmp_path, "sft", ["talk.jsonl"], parent=second.name)
    old = old_text(ModelRef(third.model, third))
    assert old.data["sources"] == ["c.txt", "a.txt", "z.txt", "b.txt"]
    assert (old.seed, old.data["val_tokens"]) == (2, 52)
    assert old_text(ModelRef(first.model, first)).data["sources"] == ["a.txt", "b.txt"]


def test_old_text_is_read_as_it_was(tmp_path: Path) -> None:
    commit = "c" * 40
    first = make_run(tmp_path, "pretrain", ["hf:some/texts:train:0.5"], columns=["text=body"])
    first.choose("hf:some/texts", lambda: commit)
    second = make_run(tmp_path, "continue", ["new.txt"], parent=first.name, columns=["text=body"])
    old = old_text(ModelRef(second.model, second))
    assert old.data["sources"] == ["new.txt", f"hf:some/texts@{commit}:train"]
    assert old.data["columns"] == ["text=body"]
    third = make_run(tmp_path, "continue", ["newer.txt"], parent=second.name)
    with pytest.raises(UserError, match="read its text with --columns"):
        old_text(ModelRef(third.model, third))


def test_a_model_without_a_run_needs_old_text_by_name(tmp_path: Path) -> None:
    orphan = make_run(tmp_path, "sft", ["talk.jsonl"], parent="/elsewhere/model")
    for ref in (ModelRef(tmp_path / "model", None), ModelRef(orphan.model, orphan)):
        with pytest.raises(UserError) as caught:
            old_text(ref)
        assert "--replay" in caught.value.fix
