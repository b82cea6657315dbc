"""Several processes that train one model: the same loss as one, one writer, one ending, and resumable on any number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmcli.cli import launch

SMALL = ["--set", "model.dim=32", "--set", "model.n_layers=2", "--set", "model.n_heads=4", "--set",
         "model.vocab_size=400", "--seq-len", "64", "--precision", "fp32"]  # fmt: skip
MOE = ["--set", "model.use_moe=true", "--set", "model.n_routed_experts=4", "--set", "model.num_experts_per_tok=2"]
STEPS = ["--steps", "6", "--set", "train.eval_every=3", "--set", "train.sample_every=100"]
UNEVEN = ["--batch-size", "7"]
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts, conversations and preferences."""
    folder = tmp_path_factory.mktemp("data")
    texts = [f"Line {i}: the cat {i * 7 % 101} sleeps in house {i % 17}." for i in range(400)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    asks = [(f"where is cat {i}?", f"in house {i * 5 % 23}.", f"cat {i} is gone") for i in range(60)]
    chats = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b, _ in asks]
    pairs = [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in asks]
    for name, records in (("chats.jsonl", chats), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def runs(forked: Forked, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a tokenizer and a small finished pretraining, 2."""
    runs = tmp_path_factory.mktemp("runs")
    forked("tokenizer", "train", "--data", str(data / "text.txt"), "--vocab-size", "400", runs=runs)
    forked("pretrain", "--data", str(data / "text.txt"), *SMALL, "--steps", "4", "--batch-size", "4", runs=runs)
    return runs


def command(*args: str, runs: Path, ranks: int = 1, **environment: str) -> subprocess.Popen[str]:
    several = ["--nproc", str(ranks)] if ranks > 1 else []
    STARTED.append(
        subprocess.Popen(
            [sys.executable, "-m", "mmcli", *args, *several, "--runs-dir", str(runs)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )
    )
    return STARTED[-1]


def finish(*args: str, runs: Path, ranks: int = 1, code: int = 0, **environment: str) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends with `code`."""
    process = command(*args, runs=runs, ranks=ranks, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return out, err


class Forked:
    """Command lines run as several ranks, without `--nproc`; quick, as what they import is imported once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_ranks.py"))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(
        self, *args: str, runs: Path, ranks: int = 1, codes: list[int] | None = None, part: int | None = None
    ) -> str:
        """What all ranks said on stderr; they end with `codes`, by default 0; `part` bytes are encoded together."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"argv": [*args, "--runs-dir", str(runs)], "world": ranks, "part": part}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["codes"] == (codes or [0] * ranks), answer["err"]
        return str(answer["err"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    server = Forked()
    yield server
    server.close()


def logged(run: Path) -> list[dict[str, Any]]:
    """The metrics of each step, without times, and without those of experts, which each micro-batch has of its own."""
    left_out = ("mfu", "tokens_per_second", "elapsed_seconds", "expert_load", "expert_entropy", "expert_dropped")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name not in left_out} for each in lines]


def newest(runs: Path) -> Path:
    return max((path for path in runs.iterdir() if path.name[:4].isdigit()), key=lambda path: path.name)


def train(forked: Forked, *args: str, runs: Path, ranks: int = 1) -> list[dict[str, Any]]:
    """The metrics of a new run."""
    forked(*args, runs=runs, ranks=ranks)
    return logged(newest(runs))


def assert_close(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert [each.keys() for each in found] == [each.keys() for each in wanted]
    for own, other in zip(found, wanted, strict=True):
        for name, value in own.items():
            assert value == pytest.approx(other[name], abs=tolerance, rel=tolerance), (name, own, other)


def test_ranks_have_the_loss_of_one_process(forked: Forked, data: Path, runs: Path) -> None:
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *STEPS, *UNEVEN]
    alone = train(forked, *args, runs=runs)
    assert len(alone) == 7 and alone[0]["loss"] > alone[5]["loss"]
    assert_close(train(forked, *args, runs=runs, ranks=2), alone)
    assert json.loads((newest(runs) / "run.json").read_text())["command"][:4] == ["mmcli", *args[:3]]
    assert_close(train(forked, *args, runs=runs, ranks=3), alone)


def test_experts_and_muon_too(forked: Forked, data: Path, runs: Path) -> None:
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *MOE, *STEPS, *UNEVEN, "--optimizer", "muon"]
    alone = train(forked, *args, runs=runs)
    assert "balance" in alone[0]
    assert_close(train(forked, *args, runs=runs, ranks=2), alone, 1e-4)
    assert_close(logged(newest(runs))[:2], alone[:2])


@pytest.mark.parametrize("stage", ["dpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_fine_tuning_on_ranks(forked: Forked, data: Path, runs: Path, stage: str) -> None:
    file = {"sft": "chats.jsonl", "dpo": "pairs.jsonl"}[stage]
    args = [stage, "--from", "2", "--data", str(data / file), "--seq-len", "64", *STEPS, "--batch-size", "5",
            "--micro-batch", "2", "--lr", "1e-3"]  # fmt: skip
    alone = train(forked, *args, runs=runs)
    assert_close(train(forked, *args, runs=runs, ranks=3), alone)


@pytest.mark.parametrize(
    "kind", [[], pytest.param([*MOE, "--optimizer", "muon"], marks=pytest.mark.slow)], ids=["adamw", "experts, muon"]
)
def test_two_ranks_resume_bit_for_bit_and_on_another_number(
    forked: Forked, data: Path, runs: Path, kind: list[str]
) -> None:
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *STEPS, *UNEVEN, *kind, "--set", "model.dropout=0.1",
            "--set", "train.checkpoint_every=3", "--set", "train.keep_checkpoints=5"]  # fmt: skip
    whole = train(forked, *args, runs=runs, ranks=2)
    first = newest(runs)
    weights = (first / "model" / "model.safetensors").read_bytes()
    cut_back(first, 3)
    err = forked("resume", first.name[:4], runs=runs, ranks=2)
    assert "resumed at step 3" in err and "not bit-exactly" not in err
    assert logged(first) == whole
    assert (first / "model" / "model.safetensors").read_bytes() == weights
    cut_back(first, 3)
    err = forked("resume", first.name[:4], runs=runs, ranks=1)
    assert "resumes, not bit-exactly: ranks 2 -> 1" in err
    assert logged(first)[:3] == whole[:3] and len(logged(first)) == 7


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_split_weights_learn_the_same(forked: Forked, data: Path, runs: Path, optimizer: str) -> None:
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *MOE, *STEPS, *UNEVEN, "--optimizer", optimizer]
    together = train(forked, *args, runs=runs, ranks=2)
    plain = load_file(newest(runs) / "model" / "model.safetensors")
    assert_close(train(forked, *args, "--shard", runs=runs, ranks=2), together, 1e-4)
    split = load_file(newest(runs) / "model" / "model.safetensors")
    assert {name: each.shape for name, each in split.items()} == {name: each.shape for name, each in plain.items()}
    for name, weights in split.items():
        np.testing.assert_allclose(weights, plain[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_split_weights_resume_on_another_number_of_ranks(forked: Forked, data: Path, runs: Path) -> None:
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *STEPS, *UNEVEN, "--set",
            "train.checkpoint_every=3", "--set", "train.keep_checkpoints=5"]  # fmt: skip
    alone = train(forked, *args, "--shard", runs=runs)
    run = newest(runs)
    cut_back(run, 3)
    err = forked("resume", run.name[:4], runs=runs, ranks=2)
    assert "resumed at step 3" in err and "ranks 1 -> 2" in err
    assert_close(logged(run), alone)
    cut_back(run, 3)
    forked("resume", run.name[:4], "--no-shard", runs=runs, ranks=2)
    assert_close(logged(run), alone)
    plain = train(forked, *args, runs=runs, ranks=2)
    cut_back(newest(runs), 3)
    forked("resume", newest(runs).name[:4], "--shard", runs=runs, ranks=2)
    assert_close(logged(newest(runs)), plain)


def test_ranks_encode_large_data_together(forked: Forked, data: Path, runs: Path, tmp_path: Path) -> None:
    """The cache has the bytes of one process; what `--strict` refuses is said once, by rank 0, whoever met it."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(5):
        lines = (json.dumps({"text": f"cat {i} sleeps in house {number}"}) for i in range(40))
        (texts / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    started = ["pretrain", "--data", str(texts), "--tokenizer", "1", *SMALL, *UNEVEN, "--steps", "2"]
    files = []
    for ranks, part in ((1, None), (2, 1000)):
        forked(*started, runs=runs, ranks=ranks, part=part)
        key = json.loads((newest(runs) / "run.json").read_text())["data"]["cache"]
        cache = runs / ".cache/tokens" / key
        files.append({path.name: path.read_bytes() for path in cache.iterdir()})
        shutil.rmtree(cache)
    assert files[0] == files[1]
    (texts / "3.jsonl").write_text("{ no JSON\n" + (texts / "3.jsonl").read_text())
    said = forked(*started, "--strict", runs=runs, ranks=2, part=1000, codes=[2, 75])
    assert said.count("3.jsonl:1 not JSON") == 1 and "Traceback" not in said


def cut_back(run: Path, step: int) -> None:
    """Make a finished run one that was killed after its checkpoint of `step`."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "state": "stopped"}))


def endless(data: Path, runs: Path, **environment: str) -> subprocess.Popen[str]:
    """A training on two ranks that would not end, in its first steps."""
    long = ["--steps", "100000", "--set", "train.checkpoint_every=20", "--set", "train.eval_every=100000", "--set",
            "train.sample_every=100000", "--batch-size", "4"]  # fmt: skip
    args = ["pretrain", "--data", str(data / "text.txt"), *SMALL, *long]
    before = {path.name for path in runs.iterdir()}
    process = command(*args, runs=runs, ranks=2, **environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [path for path in runs.iterdir() if path.name not in before and path.name[:4].isdigit()]
        if found and list((found[0] / "checkpoints").glob("step-0*")):
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


def rank_processes(launcher: int) -> dict[int, int]:
    """{rank: pid} of the processes that a launcher started."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next(each for each in environment if each.startswith(b"RANK="))
        found[int(rank.removeprefix(b"RANK="))] = int(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks by /proc")
@pytest.mark.parametrize("dies", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_death_of_a_rank_ends_all_and_is_named(data: Path, runs: Path, dies: int) -> None:
    process = endless(data, runs)
    ranks = rank_processes(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[dies], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    lines = err.splitlines()
    assert lines[-2] == f"error: rank {dies} (process {ranks[dies]}) was killed by SIGKILL"
    assert "mmcli resume" in lines[-1]
    assert "Traceback" not in err
    assert all(not Path(f"/proc/{pid}").exists() for pid in ranks.values())
    run = newest(runs)
    resumed = command("resume", run.name[:4], runs=runs, ranks=2)
    time.sleep(0.1)
    assert wait_for(resumed, "resumed at step")
    resumed.send_signal(signal.SIGINT)
    _, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 130, err


def wait_for(process: subprocess.Popen[str], words: str) -> bool:
    """Read what a process says until it says `words`; False if it ends before."""
    assert process.stderr is not None
    return any(words in line for line in process.stderr)


@pytest.mark.parametrize(
    ("number", "to_rank"),
    [
        (signal.SIGINT, None),
        pytest.param(signal.SIGTERM, None, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_once(data: Path, runs: Path, number: signal.Signals, to_rank: int | None) -> None:
    process = endless(data, runs)
    if to_rank is None:
        process.send_signal(number)
    else:
        os.kill(rank_processes(process.pid)[to_rank], number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert err.count("stopped by") == 1 and "Traceback" not in err
    info = json.loads((newest(runs) / "run.json").read_text())
    assert info["state"] == "stopped"
    saved = sorted((newest(runs) / "checkpoints").iterdir())[-1]
    assert int(saved.name.removeprefix("step-")) == info["steps_done"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--nproc", "0"], "--nproc 0 is below 1"),
        (["--nproc", "2", "--batch-size", "1"], "train.batch_size = 1 (from --batch-size) is below the 2 processes"),
        (["--nproc", "2", "--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_refused_once(data: Path, runs: Path, args: list[str], said: str) -> None:
    given = [*([] if "--data" in args else ["--data", str(data / "text.txt")]), *args]
    before = newest(runs)
    _, err = finish("pretrain", *given, *SMALL, "--steps", "2", runs=runs, code=2)
    assert err.count("error:") == 1 and said in err
    assert newest(runs) == before


def test_what_rank_0_ends_with_after_a_signal_is_the_end_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        def __init__(self, rank: int, codes: list[int | None]) -> None:
            self.rank, self._codes = rank, codes

        @property
        def code(self) -> int | None:
            return self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]

    ranks: Any = [Rank(0, [None, None, None, 130]), Rank(1, [None, 1])]
    assert launch._watch(ranks, [signal.SIGINT]) == 130
