"""However a command ends: a training saves first and says so at once; nothing else leaves anything half-written."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SMALL = ["--set", "model.dim=32", "--set", "model.n_layers=2", "--set", "model.n_heads=4", "--set",
         "model.vocab_size=400", "--seq-len", "64", "--batch-size", "4"]  # fmt: skip
LONG = ["--steps", "100000", "--set", "train.checkpoint_every=50000", "--set", "train.sample_every=100000"]
MESSAGE = "saving; Ctrl-C again discards"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n\n".join(f"Line {i}: the cat {i * 7 % 101} sleeps in house {i % 17}." for i in range(400)))
    return path


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a small finished pretraining."""
    runs = tmp_path_factory.mktemp("trained")
    done = command("pretrain", "--data", str(text), *SMALL, "--steps", "4", runs=runs)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    return runs


STARTED: list[subprocess.Popen[str]] = []
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def prepare(*, ignored: int | None = None, closed: int | None = None) -> None:
    """In the child: the signals as in a shell of a person, whatever runs the tests (`nohup`)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
    if closed is not None:
        os.close(closed)


def command(*argv: str, runs: Path, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MMCLI_RUNS": str(runs)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {**streams, "preexec_fn": prepare, **options}
    process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-m", "mmcli", *argv], env=environment, text=True, **options
    )
    STARTED.append(process)
    return process


def wait_for(condition: object, process: subprocess.Popen[str], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("it did not come")


def training(text: Path, runs: Path, **options: object) -> tuple[subprocess.Popen[str], Path]:
    """A long training that has done some steps, and its run folder."""
    process = command("pretrain", "--data", str(text), *SMALL, *LONG, runs=runs, **options)
    run = runs / "0001-pretrain-tiny"
    wait_for(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size > 2000, process)
    return process, run


def state(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "run.json").read_text())
    return found


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_answered_at_once_and_the_training_is_saved(
    text: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    process, run = training(text, tmp_path)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert MESSAGE in err
    assert err.splitlines()[-2].startswith(f"error: stopped by {sent.name} after step ")
    assert err.splitlines()[-1] == "  fix: resume it: mmcli resume 1"
    assert list((run / "checkpoints").glob("step-*")) and (run / "model" / "config.json").is_file()
    assert state(run)["state"] == "stopped" and not leftovers(tmp_path)


def test_nohup_goes_on_after_a_hangup(text: Path, tmp_path: Path) -> None:
    process, _ = training(text, tmp_path, preexec_fn=lambda: prepare(ignored=signal.SIGHUP))
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_terminal_that_is_gone_saves_the_training(text: Path, tmp_path: Path) -> None:
    """As where an SSH connection drops: the far side of the terminal is closed."""
    pid, descriptor = pty.fork()
    if pid == 0:
        prepare()
        os.environ.update(OMP_NUM_THREADS="1", MMCLI_RUNS=str(tmp_path), TERM="xterm")
        os.environ.pop("CI", None)
        os.execv(sys.executable, [sys.executable, "-m", "mmcli", "pretrain", "--data", str(text), *SMALL, *LONG])
    run, end = tmp_path / "0001-pretrain-tiny", time.monotonic() + 150
    while not ((run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size > 2000):
        assert time.monotonic() < end
        if select.select([descriptor], [], [], 0.05)[0]:
            os.read(descriptor, 65536)
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert state(run)["state"] == "stopped" and list((run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("stderr", ["closed pipe", "full disk", "closed"])
def test_output_that_cannot_be_written_ends_no_training(text: Path, tmp_path: Path, stderr: str) -> None:
    argv = ["pretrain", "--data", str(text), *SMALL, "--steps", "30", "--json"]
    if stderr == "closed pipe":
        process = command(*argv, runs=tmp_path)
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        process.stderr = None
    elif stderr == "full disk":
        with open("/dev/full", "w") as full:
            process = command(*argv, runs=tmp_path, stderr=full)
    else:
        process = command(*argv, runs=tmp_path, stderr=None, preexec_fn=lambda: prepare(closed=2))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["state"] == "finished" and json.loads(out)["steps_done"] == 30


def test_a_second_ctrl_c_keeps_the_last_good_checkpoint(text: Path, tmp_path: Path) -> None:
    process, run = training(text, tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped by SIGINT" in err and not leftovers(tmp_path)
    assert state(run)["state"] == "stopped"


def test_sigterm_before_the_loop_is_two_lines_and_resumes(tmp_path: Path) -> None:
    """While the data is encoded: the lines are many, the signal comes before the first step."""
    data = tmp_path / "big.txt"
    with open(data, "w") as file:
        for i in range(400_000):
            file.write(f"Line {i}: the cat {i * 7919 % 10007} sleeps in house {i * 31 % 997}.\n\n")
    process = command("pretrain", "--data", str(data), *SMALL, "--steps", "4", runs=tmp_path / "runs")
    run = tmp_path / "runs" / "0001-pretrain-tiny"
    wait_for(lambda: (run / "tokenizer").is_dir(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-2].startswith("error: stopped by SIGTERM")
    assert err.splitlines()[-1] == "  fix: resume it: mmcli resume 1"
    assert "Traceback" not in err and not leftovers(tmp_path)


def started(process: subprocess.Popen[str], seconds: float = 1.5) -> None:
    """Until the command is at work."""
    time.sleep(seconds)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(
    "argv",
    [
        ["chat", "1", "--prompt", "Line", "--max-new-tokens", "1000000"],
        ["eval", "1", "--suite", "demo"],
        ["bench", "decode", "1", "--repeats", "100000"],
        ["export", "onnx", "1"],
    ],
    ids=lambda argv: argv[0],
)
def test_sigterm_ends_a_command_in_two_lines_without_leftovers(trained: Path, argv: list[str]) -> None:
    process = command(*argv, runs=trained)
    started(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-2:] == ["error: stopped by SIGTERM", "  fix: run the command again"], err
    assert not leftovers(trained)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder]).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_named_before_or_stops_the_run(text: Path, small_disk: Path) -> None:
    argv = ["pretrain", "--data", str(text), *SMALL, "--steps", "40", "--set", "train.checkpoint_every=4"]
    done = command(*argv, runs=small_disk)
    _, err = done.communicate(timeout=120)
    filled = small_disk / "filled"
    if done.returncode == 0:  # it fits: fill the disk, all but a little
        shutil.rmtree(small_disk / "0001-pretrain-tiny")
        with open(filled, "wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - 900_000))
        done = command(*argv, runs=small_disk)
        _, err = done.communicate(timeout=120)
    assert done.returncode == 2, err
    assert "needed" in err and "free" in err and "bug" not in err and "Traceback" not in err


def test_a_disk_that_fills_up_while_training_stops_it_and_it_resumes(text: Path, small_disk: Path) -> None:
    argv = ["pretrain", "--data", str(text), *SMALL, "--steps", "400", "--set", "train.checkpoint_every=20"]
    argv += ["--set", "train.keep_checkpoints=1", "--set", "train.keep_best=false"]
    process = command(*argv, runs=small_disk)
    run = small_disk / "0001-pretrain-tiny"
    wait_for(lambda: list((run / "checkpoints").glob("step-*")), process)
    filled = small_disk / "filled"
    with suppress(OSError), open(filled, "wb") as file:  # the training writes too
        file.write(bytes(max(0, shutil.disk_usage(small_disk).free - 4096)))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "cannot save step" in err and "needed" in err and "mmcli resume 1" in err and "bug" not in err
    filled.unlink()
    again = command("resume", "1", runs=small_disk)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert state(run)["state"] == "finished" and state(run)["steps_done"] == 400


def test_an_absurd_rate_fails_and_resumes_at_a_lower_one(text: Path, tmp_path: Path) -> None:
    argv = ["pretrain", "--data", str(text), *SMALL, "--steps", "30", "--lr", "1e38"]
    done = command(*argv, "--set", "train.checkpoint_every=1", runs=tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 1, err
    assert "--lr-scale 0.5" in err
    run = tmp_path / "0001-pretrain-tiny"
    assert state(run)["state"] == "failed"
    again = command("resume", "1", "--lr-scale", "1e-42", runs=tmp_path)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert state(run)["state"] == "finished"
    assert state(run)["changes"] == [
        {"after_step": state(run)["changes"][0]["after_step"], "lr_scale": 1e-42, "before": 1.0}
    ]  # type: ignore[index]
