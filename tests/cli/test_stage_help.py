"""`mmcli STAGE --help` shows the values that the same command line would train with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmcli.cli import run
from mmcli.run import Run


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMCLI_RUNS", str(tmp_path / "runs"))


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, str]:
    """For each option that has one, the value at the end of its help: `default: 8`, `given: 3`."""
    assert run([*argv, "--help"]) == 0
    options = capsys.readouterr().out.partition("\nOptions:\n")[2]
    entries = [" ".join(entry.split()) for entry in re.split(r"^  (?=-)", options, flags=re.MULTILINE)]
    found = [(re.match(r"(--[a-z-]+)", entry), re.search(r"\[((?:default|given): .*?)\]$", entry)) for entry in entries]
    return {flag[1]: value[1] for flag, value in found if flag and value}


def test_pretrain_shows_what_tiny_trains_with(capsys: pytest.CaptureFixture[str]) -> None:
    help_of = shown(capsys, "pretrain")
    assert help_of["--batch-size"] == "default: 8"
    assert help_of["--lr"] == "default: 0.004"
    assert help_of["--seq-len"] == "default: 256"
    assert help_of["--preset"] == "default: tiny"
    assert help_of["--data"] == "default: demo"
    assert "--strict" not in help_of and "--steps" not in help_of


def test_a_preset_on_the_command_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    help_of = shown(capsys, "pretrain", "--preset", "small", "--device", "cuda")
    assert (help_of["--batch-size"], help_of["--lr"]) == ("default: 32", "default: 0.0005")
    assert help_of["--preset"] == "given: small"


def test_a_value_that_follows_the_device_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    help_of = shown(capsys, "pretrain", "--preset", "small", "--device", "cpu")
    assert help_of["--batch-size"] == "default: 8 (preset small on cpu)"


def test_a_rate_that_follows_the_width_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    help_of = shown(capsys, "pretrain", "--set", "model.dim=256")
    assert help_of["--lr"] == "default: 0.002 (preset tiny at width 256)"
    assert (help_of["--batch-size"], help_of["--schedule"]) == ("default: 8", "default: wsd")


def test_values_on_the_command_line_are_shown_as_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[data]\nseq_len = 99\n[optim]\nlr = 0.5\n")
    argv = ["--config", str(file), "--set", "train.steps=3", "--set", "train.seed=1", "--lr", "3e-4", "--data", "a.txt"]
    help_of = shown(capsys, "pretrain", *argv)
    assert help_of["--seq-len"] == "given: 99"
    assert help_of["--lr"] == "given: 0.0003"
    assert (help_of["--steps"], help_of["--seed"], help_of["--data"]) == ("given: 3", "given: 1", "given: a.txt")
    assert help_of["--batch-size"] == "default: 8"


def test_a_stage_that_starts_from_a_model_shows_its_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    sft, dpo = shown(capsys, "sft"), shown(capsys, "dpo")
    assert (sft["--lr"], sft["--from"]) == ("default: 0.0001", "default: latest:pretrain")
    assert sft["--batch-size"] == "default: 32"
    assert (dpo["--lr"], dpo["--from"]) == ("default: 5e-06", "default: latest:sft")


def test_it_knows_the_preset_of_the_model_that_it_starts_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parent = Run.create(tmp_path / "elsewhere", "pretrain", "tiny")
    parent.model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (parent.model / name).write_text("{}")
    parent.update(state="finished", preset="tiny")
    help_of = shown(capsys, "sft", "--runs-dir", str(tmp_path / "elsewhere"))
    assert (help_of["--lr"], help_of["--batch-size"]) == ("default: 0.002", "default: 8")


def test_config_show_takes_the_same_options_and_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["config", "show", "pretrain", "--preset", "small", "--device", "cpu"]
    assert shown(capsys, *argv)["--batch-size"] == "default: 8 (preset small on cpu)"


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_config_show_needs_neither_runs_nor_a_model(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMCLI_RUNS", raising=False)
    assert run(["config", "show", stage]) == 0
    assert "optim.lr" in capsys.readouterr().out


def test_help_for_values_that_are_refused_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--preset", "smal", "--help"]) == 2
    assert 'there is no preset "smal"' in capsys.readouterr().err
    assert run(["pretrain", "--lr", "fast", "--help"]) == 2
    assert "optim.lr = 'fast' is not a number (from --lr)" in capsys.readouterr().err
