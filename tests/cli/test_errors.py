"""Bad input gets two lines and exit code 2, never a traceback."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from mmcli.cli import console, run
from mmcli.errors import UserError


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    assert run(list(argv)) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert [line[:7] for line in lines if not line.startswith("no tokenizer yet")] == ["error: ", "  fix: "], (
        captured.err
    )
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'did you mean "pretrain"' in refused(capsys, "pretain")


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such option: --lrr" in refused(capsys, "pretrain", "--lrr", "1")


def test_unknown_preset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = refused(capsys, "pretrain", "--preset", "smal", "--runs-dir", str(tmp_path))
    assert 'there is no preset "smal"' in text
    assert 'did you mean "small"' in text


def test_unknown_key_names_its_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = refused(capsys, "pretrain", "--set", "optim.learning_rate=1", "--runs-dir", str(tmp_path))
    assert 'unknown key "optim.learning_rate" (from --set)' in text


def test_wrong_type_names_the_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = refused(capsys, "pretrain", "--lr", "fast", "--runs-dir", str(tmp_path))
    assert "optim.lr = 'fast' is not a number (from --lr)" in text


def test_wrong_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is not a time" in refused(capsys, "pretrain", "--budget", "soon", "--runs-dir", str(tmp_path))


def test_missing_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "cannot read none.toml" in refused(capsys, "pretrain", "--config", "none.toml")


def test_broken_config_file_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[optim]\nlr = \n")
    assert "line 2" in refused(capsys, "pretrain", "--config", str(path))


@pytest.mark.parametrize("name", ["none.txt", "none/*.jsonl"])
def test_missing_data(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    refused(capsys, "pretrain", "--data", str(tmp_path / name), "--runs-dir", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("0*"))


def test_empty_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    text = refused(capsys, "pretrain", "--data", str(tmp_path / "empty.txt"), "--runs-dir", str(tmp_path / "runs"))
    assert "empty.txt" in text


def test_a_file_with_no_readable_record(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{nothing\n[1,\n")
    text = refused(capsys, "pretrain", "--data", str(tmp_path / "broken.jsonl"), "--runs-dir", str(tmp_path / "runs"))
    assert "broken.jsonl" in text


def test_no_model_for_chat(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = refused(capsys, "chat", "--prompt", "hi", "--runs-dir", str(tmp_path))
    assert "no trained model yet" in text
    assert "mmcli pretrain" in text


def test_nothing_to_resume(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no unfinished run" in refused(capsys, "resume", "--runs-dir", str(tmp_path))
    assert "no unfinished run" in refused(capsys, "pretrain", "--resume", "--runs-dir", str(tmp_path))


def test_resume_takes_no_other_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = refused(capsys, "pretrain", "--resume", "--lr", "1e-3", "--runs-dir", str(tmp_path))
    assert "--lr would change it" in text


def test_a_long_error_breaks_where_the_terminal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, width=40, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "err", lambda: terminal)
    console.print_error(UserError("there is no command [bold]", "choose one of: /compare, /edit, /exit, /help, \x1b"))
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()).splitlines()]
    assert lines == [
        "error: there is no command [bold]",
        "  fix: choose one of: /compare, /edit,",
        "/exit, /help, \\x1b",
    ]
