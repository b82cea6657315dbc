"""What is said at the end, and streams that cannot be written."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import run
from mmcli.cli.console import PlainReporter, print_json
from mmcli.cli.live import LiveReporter
from mmcli.stage import Metric
from mmcli.train.config import TrainConfig

SMALL = ["--set", "model.dim=32", "--set", "model.n_layers=1", "--set", "model.n_heads=4", "--seq-len", "64"]


class Broken(io.TextIOBase):
    """A stream that fails as a closed pipe does, or as a closed file."""

    encoding = "utf-8"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "EIO"), ValueError("closed file")])
def test_no_reporter_fails_with_its_stream(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from mmcli.cli.console import err

    monkeypatch.setattr(sys, "stderr", Broken(error))
    for reporter in (PlainReporter(), LiveReporter(err())):
        reporter.note("a note")
        reporter.warn("a warning")
        reporter.progress("encode", 1, 2, "B")
        reporter.progress("encode", 2, 2, "B")
        reporter.step({"step": 1, "steps": 2, "loss": 1.0}, (Metric("loss"),))
        reporter.sample("a prompt", "a text")
        reporter.close()


def test_json_is_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    print_json({"猫": "座"})
    assert json.loads(raw.getvalue().decode("utf-8")) == {"猫": "座"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/x/f"),
        OSError(30, "Read-only file system", "/x/f"),
        PermissionError(13, "Permission denied", "/x/f"),
        MemoryError(),
    ],
)
def test_a_full_disk_and_little_memory_are_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, tmp_path: Path
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("mmcli.find.list_runs", fail)
    assert run(["runs", "show", "1", "--runs-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "bug" not in said and len(said.strip().splitlines()) == 2
    assert "/x/f" in said or "memory" in said


def test_a_runs_folder_that_cannot_be_made_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("Some words of a text.\n" * 9)
    runs = tmp_path / "file" / "runs"
    assert run(["pretrain", "--data", str(tmp_path / "file"), *SMALL, "--steps", "1", "--runs-dir", str(runs)]) == 2
    what, fix = capsys.readouterr().err.strip().splitlines()[-2:]
    assert what.startswith(f"error: cannot make {runs}") and "--runs-dir" in fix


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_signals_have_a_handler_while_a_command_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first process of a container gets only those signals for which it has one."""
    seen: list[Any] = []

    def look(*arguments: Any, **options: Any) -> list[Any]:
        seen.extend(map(signal.getsignal, numbers))
        return []

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        monkeypatch.setattr("mmcli.run.list_runs", look)
        assert run(["runs", "list", "--runs-dir", str(tmp_path)]) == 0
        assert len(seen) == 2 and all(map(callable, seen))
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_training_says_what_it_leaves_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "text.txt"
    data.write_text("\n".join(f"The cat {i} sat on mat {i * 7 % 31}." for i in range(300)))
    runs = tmp_path / "runs"
    assert run(["pretrain", "--data", str(data), *SMALL, "--steps", "2", "--runs-dir", str(runs)]) == 0
    *_, said, following = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("0001-pretrain-tiny finished after ") and said.endswith(f": {runs}/0001-pretrain-tiny/model")
    assert following == f"next: mmcli chat 1 --runs-dir {runs}, or fine-tune it: mmcli sft --from 1 --runs-dir {runs}"
    page = (runs / "0001-pretrain-tiny" / "report.html").read_text(encoding="utf-8")
    assert ">finished<" in page and "<td>--steps</td>" in page


def test_a_few_words_have_no_figure_for_what_was_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("a few words")
    runs = str(tmp_path / "runs")
    assert run(["pretrain", "--data", str(tmp_path / "words.txt"), *SMALL, "--steps", "2", "--runs-dir", runs]) == 0
    said = capsys.readouterr().err
    assert "0.000" not in said.replace("loss 0.000", "") and "bpb" not in said


def test_the_best_model_is_kept_unless_told_otherwise() -> None:
    assert TrainConfig().keep_best


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("typer.main.get_command", lambda app: type("App", (), {"main": interrupted}))
    assert run(["doctor"]) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
