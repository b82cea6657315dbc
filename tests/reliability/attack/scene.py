"""What is attacked: a folder with data and micro runs of each stage, and the bytes that each has to end in."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack.server import Done, Server

NAMES = ("Ada", "Bo", "Cy", "Di", "小明", "小红")
PLACES = ("Rome", "Oslo", "Lima", "北京")
MODEL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.vocab_size=320", "model.dropout=0.1"]
EVERY = ["train.checkpoint_every=2", "train.eval_every=3", "train.sample_every=1000"]
SHAPE = ["--seq-len", "32", "--batch-size", "2", "--micro-batch", "1", "--steps", "6"]
STAGES = ("pretrain", "sft", "dpo")
TIMES = ("tokens_per_second", "mfu", "elapsed_seconds")  # values of a metrics line that differ between any two runs


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


COMMANDS = {
    "pretrain": ["pretrain", "--data", "text.txt", "--tokenizer", "1", *SHAPE, *sets(*MODEL, *EVERY)],
    "sft": ["sft", "--data", "chat.jsonl", "--from", "2", *SHAPE, *sets(*EVERY)],
    "dpo": ["dpo", "--data", "pairs.jsonl", "--from", "3", *SHAPE, *sets(*EVERY)],
}
CHAT = ["chat", "3", "--prompt", "Ada?", "--temperature", "0", "--max-new-tokens", "6"]
READERS = {"model": CHAT, "export": [*CHAT, "--backend", "onnx"], "tokenizer": COMMANDS["pretrain"]}
TRIAL = "trial"
NUMBERS = {"pretrain": 2, "sft": 3, "dpo": 4}


@dataclass(frozen=True)
class Scene:
    """Finished runs, and what each stage started from.

    Attributes:
        folder: holds before-STAGE/ (the work folder as STAGE finds it), half-STAGE/ (the same with a run of STAGE that
            was killed after some steps), whole/ (every run and export).
        events: the file events of each stage's run.
        expected: the fingerprint of each stage's finished run (see `fingerprint`).
        answers: what the finished model says, by what it is read from: "model" or "export".
    """

    folder: Path
    server: Server
    events: dict[str, tuple[str, ...]]
    expected: dict[str, dict[str, Any]]
    answers: dict[str, str]

    def copy(self, name: str, to: Path | None = None) -> Path:
        """A trial's folder, whose work/ is a copy of `name`. One place for all: runs know where their data is."""
        to = to or self.folder / TRIAL
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        shutil.copytree(self.folder / name, to / "work")
        return to


def make_scene(folder: Path, server: Server) -> Scene:
    """Train one run of each stage, keeping the work folder before and within each."""
    work = folder / "work"
    work.mkdir(parents=True)
    _write_data(work)
    _ok(server.run(folder, "tokenizer", "train", "--data", "text.txt", "--vocab-size", "320"))
    events, expected = {}, {}
    for stage in STAGES:
        shutil.copytree(work, folder / f"before-{stage}")
        done = _ok(server.run(folder, *COMMANDS[stage], fault={"kind": "kill", "at": 0}))
        events[stage], expected[stage] = done.events, fingerprint(run_folder(work, stage))
        half = Scene(folder, server, events, expected, {}).copy(f"before-{stage}")
        after = [i for i, event in enumerate(done.events, 1) if event == "step"][4]
        assert server.run(half, *COMMANDS[stage], fault={"kind": "kill", "at": after}).code == 137
        shutil.move(half / "work", folder / f"half-{stage}")
    _ok(server.run(folder, "export", "onnx", "3"))
    shutil.copytree(work, folder / "whole")
    answers = {kind: _ok(server.run(folder, *READERS[kind])).out for kind in ("model", "export")}
    return Scene(folder, server, events, expected, answers)


def _ok(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def run_folder(work: Path, stage: str) -> Path:
    """The newest run of a stage; a path that is not there if there is none."""
    found = sorted((work / "runs").glob(f"*-{stage}-*"))
    return found[-1] if found else work / "runs" / "none"


def fingerprint(run: Path) -> dict[str, Any]:
    """Hashes of the model and of the last checkpoint, and the metrics without times."""
    parts = ["model/model.safetensors", *(f"checkpoints/step-000006/{n}.safetensors" for n in ("weights", "optimizer"))]
    found: dict[str, Any] = {}
    for part in parts:
        path = run / part
        found[part] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    found["metrics"] = [_without_times(line) for line in lines]
    return found


def _without_times(line: str) -> Any:
    try:
        return {key: value for key, value in json.loads(line).items() if key not in TIMES}
    except (ValueError, AttributeError):
        return line


def difference(run: Path, expected: dict[str, Any]) -> str | None:
    """The first thing of a run that is not as in the run that was never stopped, or None."""
    try:
        found = fingerprint(run)
    except OSError as error:
        return str(error)
    return next((f"{key} differs" for key in expected if found[key] != expected[key]), None)


def _write_data(work: Path) -> None:
    facts = [(name, place) for name in NAMES for place in PLACES]
    texts = [f"{name} lives in {place}. The home of {name} is {place}." for name, place in facts]
    (work / "text.txt").write_text("\n".join(texts * 3), encoding="utf-8")
    chats = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": p}]} for n, p in facts
    ]
    pairs = [{"prompt": f"{n}?", "chosen": p, "rejected": "no"} for n, p in facts]
    for name, records in (("chat.jsonl", chats), ("pairs.jsonl", pairs)):
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (work / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
