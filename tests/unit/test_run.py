from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mmcli.errors import UserError
from mmcli.export.locate import default_folder
from mmcli.files import previous
from mmcli.find import find_model, find_run, find_unfinished
from mmcli.housekeeping import remove_run
from mmcli.run import Run, list_runs


def a_run(root: Path, stage: str = "pretrain", *, state: str = "finished", model: bool = True) -> Run:
    run = Run.create(root, stage, "tiny")
    run.update(state=state)
    run.write_config({"train": {"steps": 3}})
    if model:
        run.model.mkdir()
        (run.model / "tokenizer.json").write_text("{}")
        if stage != "tokenizer":
            (run.model / "config.json").write_text("{}")
    return run


def test_runs_are_numbered_and_listed_in_order(tmp_path: Path) -> None:
    names = [Run.create(tmp_path, stage, label).name for stage, label in [("pretrain", "tiny"), ("sft", "a b/c")]]
    assert names == ["0001-pretrain-tiny", "0002-sft-a-b-c"]
    assert [run.name for run in list_runs(tmp_path)] == names
    assert [run.stage for run in list_runs(tmp_path)] == ["pretrain", "sft"]


def test_a_number_belongs_to_one_run_though_two_processes_begin_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's folder comes between a look at the numbers and the new folder, or is just being made."""
    Run.create(tmp_path, "pretrain", "a")
    looks = iter([[], list_runs(tmp_path), list_runs(tmp_path)])
    with monkeypatch.context() as patched:
        patched.setattr("mmcli.run.list_runs", lambda folder: next(looks))
        assert Run.create(tmp_path, "pretrain", "b").name == "0002-pretrain-b"
    (tmp_path / ".0003").mkdir()
    assert Run.create(tmp_path, "sft", "c").name == "0004-sft-c"
    assert [path.name for path in tmp_path.glob(".*")] == [".0003"]


def test_a_command_names_a_run_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMCLI_RUNS", raising=False)
    assert Run(Path("runs/0007-sft-tiny")).reference == "7"
    assert Run(Path("/big disk/0007-sft-tiny")).reference == "7 --runs-dir '/big disk'"
    monkeypatch.setenv("MMCLI_RUNS", "/big disk")
    assert Run(Path("/big disk/0007-sft-tiny")).reference == "7"
    assert Run(Path("runs/0007-sft-tiny")).reference == "7 --runs-dir runs"


def test_a_run_is_found_by_number_name_folder_and_latest(tmp_path: Path) -> None:
    first, second = a_run(tmp_path), a_run(tmp_path, "sft")
    for ref in ("1", "0001", first.name, str(first.path), "latest:pretrain"):
        assert find_run(ref, tmp_path) == first
    assert find_run("latest", tmp_path) == second
    with pytest.raises(UserError, match='no run "9"'):
        find_run("9", tmp_path)


def test_a_run_is_found_by_the_name_that_it_was_given(tmp_path: Path) -> None:
    named = Run.create(tmp_path, "tokenizer", "t6400")
    assert find_run("t6400", tmp_path) == named
    a_run(tmp_path), a_run(tmp_path, "sft")
    with pytest.raises(UserError, match='"tiny" is the name of 2 runs: 0002-pretrain-tiny, 0003-sft-tiny'):
        find_run("tiny", tmp_path)


def test_a_path_is_looked_up_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = a_run(tmp_path / "here"), a_run(tmp_path / "there")
    assert here.name == there.name
    for runs_dir in (tmp_path / "here", tmp_path / "none"):
        assert find_run(str(there.path), runs_dir) == there
        for folder in (there.path, there.model):
            found = find_model(str(folder), runs_dir)
            assert (found.path, found.run) == (there.model, there)
    monkeypatch.chdir(there.path)
    assert find_run(".", tmp_path / "here") == there
    assert find_model("model", tmp_path / "here").run == there
    plain = tmp_path / "exported"
    there.path.rename(plain)
    assert find_model(str(plain), tmp_path / "here").path == plain / "model"
    for ref, what in ((str(there.path), "there is no folder"), (str(tmp_path), "is not a run folder")):
        with pytest.raises(UserError, match=what):
            find_run(ref, tmp_path / "here")
    with pytest.raises(UserError, match="holds no model"):
        find_model(str(tmp_path), tmp_path / "here")


def test_the_best_model_of_a_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = a_run(tmp_path), a_run(tmp_path, "sft")
    with pytest.raises(UserError, match="has no best model") as caught:
        find_model("1/best", tmp_path)
    assert caught.value.fix == "take the model that it ended with: 1"
    for each in (first, second):
        each.update(best={"step": 3, "val_loss": 1.5})
    assert find_model("1/best", tmp_path).path == first.model  # it ended with its best
    first.best.mkdir()
    (first.best / "config.json").write_text("{}")
    for ref in ("1/best", f"{first.name}/best", "latest:pretrain/best", f"{first.path}/best"):
        found = find_model(ref, tmp_path)
        assert (found.path, found.run, found.label) == (first.best, first, "0001-pretrain-tiny/best")
        assert found.is_best and default_folder(found, "int8") == first.exports / "best-onnx-int8"
    assert find_model("latest/best", tmp_path).path == second.model
    assert not find_model("1", tmp_path).is_best
    monkeypatch.chdir(first.best)
    assert find_model(".", tmp_path).is_best
    (tmp_path / "home" / "best").mkdir(parents=True)
    (tmp_path / "home" / "best" / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_model("~/best", tmp_path).run is None
    with pytest.raises(UserError, match='no run "9"'):
        find_model("9/best", tmp_path)
    shutil.copytree(first.model, tmp_path / "copy")
    with pytest.raises(UserError, match="is not a run folder"):
        find_model(f"{tmp_path}/copy/best", tmp_path)


def test_a_run_that_started_from_a_best_model_keeps_its_parent(tmp_path: Path) -> None:
    """Also once the parent was resumed and ended with a better one, so that its `best/` is gone."""
    parent, child = a_run(tmp_path), a_run(tmp_path, "sft")
    child.record_choice("start_from", f"{parent.name}/best")
    assert child.parent == parent
    remove_run(parent)
    assert child.parent is None


def test_latest_passes_over_runs_without_a_model(tmp_path: Path) -> None:
    wanted = a_run(tmp_path)
    a_run(tmp_path, model=False, state="failed")
    tokenizer = a_run(tmp_path, "tokenizer")
    assert find_model("latest", tmp_path).run == wanted
    assert find_model("latest:tokenizer", tmp_path).run == tokenizer
    assert find_model(str(wanted.model), tmp_path).path == wanted.model
    with pytest.raises(UserError, match="has no saved model"):
        find_model("2", tmp_path)


def test_no_model_yet_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_model("latest", tmp_path / "none")
    assert "no trained model yet" in caught.value.what
    assert "mmcli pretrain" in caught.value.fix


def test_a_run_is_running_while_it_is_locked_whatever_its_pid(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with run.lock() as held:
        assert held
        run.begin()
        assert run.info()["state"] == "running"
        with pytest.raises(UserError, match=f"{run.name} is still running"):
            find_unfinished(tmp_path)
        with pytest.raises(UserError, match=f"{run.name} is still running"), run.lock():
            pass
    assert json.loads((run.path / "run.json").read_text())["state"] == "running"
    run.update(pid=1)  # a process that lives
    assert run.info()["state"] == "stopped"
    assert run.info()["reason"] == "the process ended without saving its state"
    assert find_unfinished(tmp_path) == run
    assert not (run.path / "run.lock").exists()


def test_a_run_is_not_running_before_it_is_locked(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "pretrain", "tiny")
    assert json.loads((run.path / "run.json").read_text())["state"] == "stopped"
    with pytest.raises(UserError, match="no unfinished run"):  # it has no configuration yet
        find_unfinished(tmp_path)


def test_a_run_that_begins_again_forgets_why_it_stopped(tmp_path: Path) -> None:
    run = a_run(tmp_path, state="stopped")
    run.update(reason="stopped by SIGINT", steps_done=3)
    with run.lock():
        run.begin()
        info = run.info()
    assert "reason" not in info
    assert (info["state"], info["pid"], info["steps_done"]) == ("running", os.getpid(), 3)


def test_what_a_reader_sees_is_not_written(tmp_path: Path) -> None:
    run = a_run(tmp_path, state="running")
    assert run.info()["state"] == "stopped"
    run.update(steps_done=4)
    stored = json.loads((run.path / "run.json").read_text())
    assert (stored["state"], stored["steps_done"]) == ("running", 4)
    assert "the process ended" not in str(stored.get("reason"))


def test_the_command_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> object:
        return Run.create(tmp_path, "pretrain", "x").info()["command"]

    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "7"])
    for program in ("train.py", "/x/pytest/__main__.py"):
        monkeypatch.setattr("sys.argv", [program, "7"])
        assert command() == ["python", "train.py", "7"]
    for program in ("/bin/mmcli", "/x/mmcli/__main__.py"):
        monkeypatch.setattr("sys.argv", [program, "pretrain"])
        assert command() == ["mmcli", "pretrain"]


def test_choices_are_made_once(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert run.choose("micro_batch", lambda: 4) == 4
    assert run.choose("micro_batch", lambda: 8) == 4
    assert run.read_config("resolved.toml") == {"micro_batch": 4}


def test_a_misspelt_stage_is_not_repeated_as_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_model("latest:pretain", tmp_path)
    assert caught.value.fix == 'did you mean "pretrain"?'
    with pytest.raises(UserError) as caught:
        find_model("latest:sft", tmp_path)
    assert caught.value.fix == "run: mmcli sft"


def test_the_next_process_that_locks_a_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    left = [
        *(run.path / name for name in (".model.7.tmp", ".run.json.7.tmp", f".metrics.jsonl.{os.getpid()}.tmp")),
        *(run.checkpoints / name for name in (".step-000004.7.tmp", ".step-000004.7.tmp.lock")),
        *(run.exports / name for name in (".onnx-fp32.7.tmp", ".onnx-fp32.7.tmp.lock")),
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        if path.name.endswith("json.7.tmp") or path.suffix == ".lock":
            path.write_text("half")
        else:
            path.mkdir()
    somebodys = run.exports / ".onnx-int8.7.tmp"  # without a lock and young: it may be being written
    somebodys.mkdir()
    with run.lock():
        assert [path for path in left if path.exists()] == []
        assert somebodys.exists()


def test_a_model_that_was_moved_aside_is_found_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    old = previous(run.model)
    old.mkdir()
    (old / "tokenizer.json").write_text("{}")
    with run.lock(), pytest.raises(UserError):  # `lock` has brought it back; somebody is replacing it now
        run.model.rename(old)
        find_model("1", tmp_path)
    for ref in ("1", "latest:pretrain"):
        assert (find_model(ref, tmp_path).path / "tokenizer.json").is_file()
        run.model.rename(old)


def test_what_is_chosen_while_something_is_chosen_is_kept(tmp_path: Path) -> None:
    """Measuring a step may find that the micro-batch has to be halved."""
    run = Run.create(tmp_path, "pretrain", "test")
    assert run.choose("micro_batch", lambda: 4) == 4

    def measure() -> float:
        run.record_choice("micro_batch", 2)
        return 0.5

    assert run.choose("seconds", measure) == 0.5
    assert run.read_config("resolved.toml") == {"micro_batch": 2, "seconds": 0.5}
