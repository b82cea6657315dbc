"""What a run reads is what it began with, or the resumed run says what changed and refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from mmcli.cli import run as mmcli
from mmcli.find import find_run
from mmcli.inputs import read_inputs
from mmcli.run import Run

NAMES, PLACES = ("Ada", "Bo", "Cy", "Di", "Eve", "小明"), ("Rome", "Oslo", "Lima", "北京")
FACTS = [(name, place) for name in NAMES for place in PLACES]
SHAPE = [
    word
    for each in ("model.dim=32", "model.n_layers=1", "model.n_heads=2", "train.checkpoint_every=2")
    for word in ("--set", each)
]
SMALL = ["--seq-len", "64", "--batch-size", "4", "--micro-batch", "2", "--set", "train.keep_checkpoints=9"]
OFTEN = [*SMALL, "--set", "train.checkpoint_every=2", "--lr", "1e-3", "--steps", "4"]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in records), encoding="utf-8")


def pairs() -> list[dict[str, Any]]:
    return [{"prompt": f"Where is {n}?", "chosen": f"In {p}.", "rejected": f"Not in {p}, {n}."} for n, p in FACTS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and runs of every stage with the checkpoints of steps 2 and 4; made in the folder of the data."""
    root = tmp_path_factory.mktemp("world")
    (root / "text.txt").write_text("\n".join(f"{n} lives in {p}, the home of {n}." for n, p in FACTS * 3), "utf-8")
    chats = [
        {"messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": f"In {p}."}]}
        for n, p in FACTS
    ]
    write(root / "chat.jsonl", chats)
    write(root / "pairs.jsonl", pairs())
    before = Path.cwd()
    os.chdir(root)
    try:
        for argv in (
            ["tokenizer", "train", "--data", "text.txt", "--vocab-size", "400", "--name", "t400"],
            ["pretrain", "--data", "text.txt", *SHAPE, *SMALL, "--steps", "4"],
            ["sft", "--data", "chat.jsonl", *OFTEN],
            ["dpo", "--data", "pairs.jsonl", *OFTEN],
        ):
            assert mmcli([*argv, "--runs-dir", "runs"]) == 0, argv
    finally:
        os.chdir(before)
    return root


PRETRAIN, SFT, DPO = "0002-pretrain-tiny", "0003-sft-tiny", "0004-dpo-tiny"


@pytest.fixture
def data(world: Path) -> Iterator[Path]:
    """The folder of the data, which is as before when the test ends."""
    before = {path: path.read_bytes() for path in world.iterdir() if path.is_file()}
    yield world
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture
def stopped(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`stopped(name, step)`: a copy of the runs in which one was stopped after a step; its folder."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, step: int = 2) -> Path:
        shutil.copytree(world / "runs", tmp_path / "runs")
        run = tmp_path / "runs" / name
        for late in run.glob("checkpoints/step-*"):
            if int(late.name[5:]) > step:
                shutil.rmtree(late)
        if not step:
            shutil.rmtree(run / "checkpoints")
        shutil.rmtree(run / "model")
        info = json.loads((run / "run.json").read_text("utf-8"))
        (run / "run.json").write_text(json.dumps({**info, "state": "stopped"}), "utf-8")
        return run

    return make


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command says that the person's mistake ends: two lines, exit code 2."""
    capsys.readouterr()
    assert mmcli([*argv]) == 2, argv
    said = capsys.readouterr().err
    error, fix = said.splitlines()[-2:]
    assert error.startswith("error: ") and fix.startswith("  fix: ") and "Traceback" not in said, said
    return f"{error}\n{fix}"


def resumes(capsys: pytest.CaptureFixture[str], run: Path, *more: str) -> str:
    capsys.readouterr()
    assert mmcli(["resume", run.name, "--runs-dir", str(run.parent), *more]) == 0, capsys.readouterr().err
    return capsys.readouterr().err


def same(run: Path, whole: Path) -> None:
    for name in ("model/model.safetensors", "checkpoints/step-000004/optimizer.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


# Data


@pytest.mark.parametrize("step", [0, 2])
def test_edited_data_is_named_and_refused_unless_allowed(
    stopped: Callable[..., Path], data: Path, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    run = stopped(PRETRAIN, step)
    text = data / "text.txt"
    before = json.loads((run / "run.json").read_text("utf-8"))["data"]
    text.write_text(text.read_text("utf-8").replace("lives", "dwells"), "utf-8")
    said = refused(capsys, "resume", "2", "--runs-dir", "runs")
    assert f"the data of {PRETRAIN} changed since it began: {text} was " in said
    assert "mmcli resume 2 --allow-change data" in said
    assert json.loads((run / "run.json").read_text("utf-8"))["data"] == before
    refused(capsys, "resume", "2", "--allow-change", "tokenizer", "--runs-dir", "runs")
    said = resumes(capsys, run, "--allow-change", "data")
    assert f"resumes, not bit-exactly: data, {text} " in said
    (change,) = json.loads((run / "run.json").read_text("utf-8"))["changes"]
    assert (change["input"], change["what"]) == ("data", str(text)) and change["before"] != change["now"]


def test_data_that_was_only_touched_is_the_same(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(PRETRAIN)
    os.utime(world / "text.txt")
    resumes(capsys, run)
    same(run, world / "runs" / PRETRAIN)


def test_another_working_folder_does_not_matter(
    stopped: Callable[..., Path],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = stopped(PRETRAIN)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "text.txt").write_text("Another text of that name.\n" * 50)
    monkeypatch.chdir(tmp_path / "other")
    resumes(capsys, run)
    same(run, world / "runs" / PRETRAIN)


def test_data_that_is_gone_is_named(
    stopped: Callable[..., Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(PRETRAIN)
    text = data / "text.txt"
    text.unlink()
    assert f"{PRETRAIN} reads {text}, which is gone" in refused(capsys, "resume", "2", "--runs-dir", "runs")


def test_the_switch_resume_takes_allowed_changes_too(
    stopped: Callable[..., Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(PRETRAIN)
    text = data / "text.txt"
    text.write_text(text.read_text("utf-8") + "\nOne more line of text.", "utf-8")
    refused(capsys, "pretrain", "--resume", "--runs-dir", "runs")
    assert mmcli(["pretrain", "--resume", "--allow-change", "data", "--runs-dir", "runs"]) == 0
    assert "add --resume" in refused(capsys, "pretrain", "--allow-change", "data", "--runs-dir", "runs")
    assert "did you mean" in refused(capsys, "resume", "2", "--allow-change", "dta", "--runs-dir", "runs")


# Preference pairs and their reference


def swapped() -> list[dict[str, Any]]:
    return [{**each, "chosen": each["rejected"], "rejected": each["chosen"]} for each in pairs()]


@pytest.mark.parametrize("changed", [swapped()[::-1], swapped(), pairs()[:9], pairs()[::-1]])
def test_other_pairs_never_take_the_reference_of_the_old(
    stopped: Callable[..., Path], data: Path, capsys: pytest.CaptureFixture[str], changed: list[dict[str, Any]]
) -> None:
    run = stopped(DPO)
    write(data / "pairs.jsonl", changed)
    assert f"the data of {DPO} changed" in refused(capsys, "resume", "4", "--runs-dir", "runs")
    said = resumes(capsys, run, "--allow-change", "data")
    assert "is of other pairs or weights" in said
    fresh = run.parents[1] / "fresh"
    argv = ["dpo", "--data", str(data / "pairs.jsonl"), *OFTEN, "--from", f"runs/{SFT}", "--runs-dir", str(fresh)]
    assert mmcli(argv) == 0
    mine, theirs = (load_file(each / "reference/logps.safetensors") for each in (run, fresh / "0001-dpo-tiny"))
    assert all((mine[name] == theirs[name]).all() for name in theirs)


def test_a_damaged_reference_table_is_computed_again(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(DPO)
    table = run / "reference/logps.safetensors"
    flipped = bytearray(table.read_bytes())
    flipped[-3] ^= 0x40
    for damage in (bytes(flipped), table.read_bytes()[:40], b""):
        table.write_bytes(damage)
        backup = run.parent / "backup"
        shutil.copytree(run, backup)
        said = resumes(capsys, run)
        assert "logps.safetensors is damaged" in said
        same(run, world / "runs" / DPO)
        shutil.rmtree(run)
        backup.rename(run)


def test_the_table_needs_no_model_and_a_lost_one_says_so(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(DPO)
    shutil.rmtree(run.parent / SFT)
    shutil.copytree(run, run.parent / "kept")
    resumes(capsys, run)
    same(run, world / "runs" / DPO)
    shutil.rmtree(run)
    (run.parent / "kept").rename(run)
    (run / "reference/logps.safetensors").unlink()
    said = refused(capsys, "resume", "4", "--runs-dir", "runs")
    assert f"{SFT}/model, is gone" in said and "does not hold its weights" in said


# The model that a run starts from


def test_a_deleted_parent_does_not_matter_once_there_is_a_checkpoint(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(SFT)
    shutil.rmtree(run.parent / PRETRAIN)
    resumes(capsys, run)
    same(run, world / "runs" / SFT)


def test_before_the_first_checkpoint_the_parent_is_needed(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(SFT, step=0)
    parent = run.parent / PRETRAIN
    parent.rename(run.parent / "away")
    said = refused(capsys, "resume", "3", "--runs-dir", "runs")
    assert f"{PRETRAIN}/model, is gone, and there is no checkpoint yet" in said
    (run.parent / "away").rename(parent)
    resumes(capsys, run)
    same(run, world / "runs" / SFT)


def replace_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: each * 2 for name, each in weights.items()}, model / "model.safetensors", {"format": "pt"})
    (model / "manifest.json").unlink()


def test_a_replaced_parent_is_refused_where_it_is_read_and_named_where_it_is_not(
    stopped: Callable[..., Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(SFT)
    replace_weights(run.parent / PRETRAIN / "model")
    shutil.copytree(run, run.parent / "kept")
    said = resumes(capsys, run)
    assert f"the starting model, {PRETRAIN}, changed since {SFT} began (model.safetensors was " in said
    same(run, world / "runs" / SFT)
    shutil.rmtree(run)
    (run.parent / "kept").rename(run)
    shutil.rmtree(run / "checkpoints")
    said = refused(capsys, "resume", "3", "--runs-dir", "runs")
    assert f"the starting model of {SFT} changed since it began: model.safetensors was " in said
    assert "--allow-change parent" in said
    resumes(capsys, run, "--allow-change", "parent")


def test_a_path_is_not_looked_up_by_its_name_elsewhere(world: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(world / "runs" / PRETRAIN, here / PRETRAIN)
    replace_weights(here / PRETRAIN / "model")
    for ref in (world / "runs" / PRETRAIN / "model", world / "runs" / PRETRAIN):
        argv = ["sft", "--from", str(ref), "--data", str(world / "chat.jsonl"), *OFTEN, "--runs-dir", str(here)]
        assert mmcli(argv) == 0
        made = find_run("latest", here)
        assert (made.model / "model.safetensors").read_bytes() == (
            world / "runs" / SFT / "model" / "model.safetensors"
        ).read_bytes()
        assert made.started_from() == (world / "runs" / PRETRAIN / "model").resolve()


def test_a_replaced_tokenizer_is_refused(
    stopped: Callable[..., Path], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(PRETRAIN)
    argv = ["tokenizer", "train", "--data", str(world / "chat.jsonl"), "--vocab-size", "400", "--runs-dir"]
    argv.append(str(tmp_path / "t"))
    assert mmcli(argv) == 0
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(find_run("latest", tmp_path / "t").model, run / "tokenizer")
    assert f"the tokenizer of {PRETRAIN} changed" in refused(capsys, "resume", "2", "--runs-dir", "runs")


# Files that tell what a run is


def test_a_shortened_configuration_is_named(stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(PRETRAIN)
    whole = (run / "config.toml").read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    for count in range(len(lines)):
        (run / "config.toml").write_text("".join(lines[:count]), "utf-8")
        said = refused(capsys, "resume", "2", "--runs-dir", "runs")
        assert "is missing" in said or "is damaged" in said, count
    (run / "config.toml").write_text(whole, "utf-8")
    resumes(capsys, run)


def test_an_edited_configuration_is_named_by_its_key(
    stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(PRETRAIN)
    config = run / "config.toml"
    config.write_text(config.read_text("utf-8").replace("clip = 1.0", "clip = 0.5"), "utf-8")
    said = refused(capsys, "resume", "2", "--runs-dir", "runs")
    assert f"the config.toml of {PRETRAIN} changed since it began: optim.clip was 1.0, is 0.5" in said
    assert "not bit-exactly: config.toml, optim.clip 1.0 -> 0.5" in resumes(capsys, run, "--allow-change", "config")


@pytest.mark.parametrize("name", ["config.toml", "resolved.toml", "run.json", "inputs.json"])
def test_damage_is_two_lines_and_hides_no_other_run(
    stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = stopped(PRETRAIN)
    whole = (run / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    cuts = [whole[: len(whole) * part // 7] for part in range(1, 7)]
    flips = [bytes(flipped)] if name != "run.json" else []  # of run.json nothing that is computed comes
    for damage in (b"", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 100_000, *flips, *cuts):
        (run / name).write_bytes(damage)
        refused(capsys, "resume", "2", "--runs-dir", "runs")
        assert mmcli(["runs", "list", "--runs-dir", "runs", "--json"]) == 0
        assert [each["run"] for each in json.loads(capsys.readouterr().out)][1:] == [PRETRAIN, SFT, DPO]
        assert mmcli(["runs", "list", "--runs-dir", "runs"]) == 0
        assert mmcli(["runs", "show", "2", "--runs-dir", "runs"]) in (0, 2)


def test_a_lost_file_of_choices_is_named(stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(PRETRAIN)
    (run / "resolved.toml").unlink()
    assert "resolved.toml is missing" in refused(capsys, "resume", "2", "--runs-dir", "runs")


def test_a_run_keeps_everything_that_it_reads(world: Path) -> None:
    kept = read_inputs(Run(world / "runs" / DPO))
    assert set(kept) == {"config", "data", "data/encoding", "tokenizer", "parent"}
    assert set(kept["data"].parts) == {str(world / "pairs.jsonl")}
    assert set(kept["parent"].parts) == {"config.json", "model.safetensors"}
    assert Run(world / "runs" / DPO).started_from() == world / "runs" / SFT / "model"


# The machine


def test_another_cpu_capability_is_named(stopped: Callable[..., Path]) -> None:
    run = stopped(PRETRAIN)
    now = torch.backends.cpu.get_cpu_capability()
    other = "default" if now != "DEFAULT" else "avx2"
    command = [sys.executable, "-m", "mmcli", "resume", "2", "--runs-dir", str(run.parent)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": other}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resumes, not bit-exactly: cpu capability {now} -> {other.upper()}" in done.stderr


# A path is a path


def test_a_run_elsewhere_is_found_by_its_path(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = world / "runs" / SFT
    assert mmcli(["runs", "show", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == SFT
    for path in (run, run / "model"):
        assert mmcli(["chat", str(path), "--prompt", "Where is Ada?", "--max-new-tokens", "2"]) == 0
    text = ["--data", str(world / "text.txt"), *SHAPE, *SMALL, "--steps", "1"]
    tokenizer = world / "runs" / "0001-tokenizer-t400"
    assert mmcli(["pretrain", *text, "--tokenizer", str(tokenizer)]) == 0
    assert mmcli(["pretrain", *text, "--tokenizer", "t400", "--runs-dir", str(world / "runs"), "--name", "x"]) == 0
    shutil.rmtree(find_run("x", world / "runs").path)
    assert "there is no folder /no/0001-sft-x" in refused(capsys, "chat", "/no/0001-sft-x", "--prompt", "x")
    assert "is not a run folder" in refused(capsys, "runs", "show", str(world))
