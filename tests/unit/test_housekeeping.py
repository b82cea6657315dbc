"""Runs renamed, removed and pruned: what refers to them goes on working, and nothing goes that is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcli.errors import UserError
from mmcli.files import atomic_folder
from mmcli.find import find_model, find_run
from mmcli.housekeeping import children, disk_bytes, prunable, prune_run, refuse_removal, remove_run, rename_run
from mmcli.lock import file_lock
from mmcli.run import LOCK, Run, list_runs


def a_run(root: Path, stage: str = "pretrain", parent: Run | None = None, *, state: str = "finished") -> Run:
    run = Run.create(root, stage, "tiny")
    run.write_config({"train": {"steps": 3}})
    if parent is not None:
        run.record_choice("start_from", f"{parent.name}/model")
        run.update(parent=parent.name)
    run.update(state=state)
    run.model.mkdir()
    for name in ("tokenizer.json", "config.json"):
        (run.model / name).write_text("{}")
    return run


def a_checkpoint(run: Run, step: int) -> Path:
    path = run.checkpoints / f"step-{step:06d}"
    with atomic_folder(path) as folder:
        for name in ("weights.safetensors", "optimizer.safetensors"):
            (folder / name).write_bytes(b"x" * 100)
        (folder / "progress.json").write_text(json.dumps({"step": step}))
    return path


def test_what_refers_to_a_run_survives_its_new_names(tmp_path: Path) -> None:
    parent = a_run(tmp_path)
    child = a_run(tmp_path, "sft", parent)
    once = rename_run(parent, "books")
    twice = rename_run(find_run("books", tmp_path), "books-2")
    assert (once.name, twice.name) == ("0001-pretrain-books", "0001-pretrain-books-2")
    assert [run.name for run in list_runs(tmp_path)] == [twice.name, child.name]
    for ref in ("1", "books-2", "0001-pretrain-tiny", "0001-pretrain-books", "latest:pretrain", str(parent.path)):
        assert find_run(ref, tmp_path) == twice
        assert find_model(ref, tmp_path).run == twice
    assert find_model(str(parent.model), tmp_path).run == twice
    assert child.parent == twice and children(twice) == [child]
    assert not (twice.path / LOCK).exists()
    back = rename_run(twice, "tiny")
    assert back == parent and child.parent == parent and parent.name not in back.former_names


def test_a_name_that_would_mislead_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_run(tmp_path).update()
    rename_run(Run(tmp_path / "0002-pretrain-tiny"), "b")
    for name, why in (("7", "mean another"), ("latest", "mean another"), ("a/b", "cannot be"), ("", "cannot be")):
        with pytest.raises(UserError, match=why):
            rename_run(run, name)
    with pytest.raises(UserError, match='"b" is the name of 0002-pretrain-b'):
        rename_run(run, "b")
    assert rename_run(run, "tiny") == run
    with file_lock(run.path / LOCK), pytest.raises(UserError, match="still running"):
        rename_run(run, "c")
    assert run.path.is_dir() and run.former_names == []


def test_a_run_is_removed_unless_it_is_in_use_or_needed(tmp_path: Path) -> None:
    parent = a_run(tmp_path)
    done, begun = a_run(tmp_path, "sft", parent), a_run(tmp_path, "dpo", parent, state="stopped")
    with file_lock(parent.path / LOCK), pytest.raises(UserError, match="still running"):
        refuse_removal([parent])
    with pytest.raises(UserError, match=r"0003-dpo-tiny started from 0001-pretrain-tiny and cannot be resumed"):
        refuse_removal([parent])
    refuse_removal([parent, begun])
    a_checkpoint(begun, 5)
    refuse_removal([parent])
    begun.write_config({"train": {"adapter": "lora"}})
    with pytest.raises(UserError, match="cannot be resumed"):
        refuse_removal([parent])
    size = disk_bytes(done.path)
    assert size > 0 and remove_run(done) == size
    assert list_runs(tmp_path) == [parent, begun]


def test_the_number_of_a_removed_parent_is_not_given_again(tmp_path: Path) -> None:
    parent = a_run(tmp_path)
    child = a_run(tmp_path, "sft", parent)
    remove_run(parent)
    assert Run.create(tmp_path, "pretrain", "tiny").number == 3
    assert child.parent is None and child.info()["parent"] == parent.name


def test_prune_keeps_what_a_resume_needs(tmp_path: Path) -> None:
    run = a_run(tmp_path, state="stopped")
    paths = [a_checkpoint(run, step) for step in (1, 2, 3, 4)]
    (paths[3] / "weights.safetensors").write_bytes(b"y" * 100)  # damaged: a resume loads the one before it
    would = prunable(run)
    assert would.removed == (paths[0], paths[1]) and would.kept == (paths[2], paths[3])
    assert would.bytes == disk_bytes(paths[0]) + disk_bytes(paths[1]) and paths[0].is_dir()
    assert prune_run(run) == would
    assert sorted(run.checkpoints.iterdir()) == list(would.kept)
    assert prune_run(run).removed == ()


def test_prune_leaves_a_finished_run_its_models(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.best.mkdir()
    for step in (1, 2, 3):
        a_checkpoint(run, step)
    assert len(prune_run(run).removed) == 3
    assert run.model.is_dir() and run.best.is_dir()
    a_checkpoint(run, 3)
    (run.model / "config.json").unlink()
    assert [path.name for path in prunable(run).kept] == ["step-000003"]


def test_prune_removes_nothing_where_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    run = a_run(tmp_path, state="stopped")
    for step in (1, 2):
        (a_checkpoint(run, step) / "weights.safetensors").write_bytes(b"")
    assert prunable(run).removed == ()
    with file_lock(run.path / LOCK), pytest.raises(UserError, match="still running"):
        prune_run(run)
