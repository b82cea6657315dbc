"""Run folders: runs/0007-sft-small/ with what was asked, what was chosen, what came out. No torch here.

A run folder holds config.toml, resolved.toml, run.json, metrics.jsonl, checkpoints/, model/. Its state is one of
`running`, `finished`, `stopped` (a signal, or the end of a budget) and `failed`. A run is running while a process holds
its lock, and only then: the pid in run.json is for people.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.errors import UserError
from mmcli.files import recover, remove_leftovers, write_atomic, write_json
from mmcli.lock import Locked, file_lock, is_locked

MODEL, BEST = "model", "best"  # folders of a run: its newest model, and the one with the best held-out value
ONNX_GRAPH = "model.onnx"  # in a folder that is an ONNX export
RESOLVED = "resolved.toml"
SAMPLES = "samples.jsonl"  # texts that the model wrote during the training
EVALUATIONS = "evaluations.json"  # results of `mmcli eval`
INPUTS = "inputs.json"  # see mmcli.inputs
SEAL = "# sha256 of the lines above: "
STATES = ("running", "finished", "stopped", "failed")
LOCK = "run.lock"  # there only while a process works on the run, or where one was killed
CHECKPOINT_FILES = ("weights.safetensors", "optimizer.safetensors", "progress.json")
RUN_NAME = re.compile(r"^(\d{4,})-([a-z0-9_]+)-(.+)$|^(\d{4,})-([a-z0-9_]+)$")


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_writable(self) -> bool:
        """False in a process that only follows the one that writes the run (`FollowedRun`)."""
        return True

    @property
    def number(self) -> int:
        return int(self.name.split("-", 1)[0])

    @property
    def reference(self) -> str:
        """How a command line names it: its number, with `--runs-dir` where that is not the usual folder."""
        usual = Path(os.environ.get("MMCLI_RUNS", "runs"))
        where = "" if self.path.parent == usual else f" --runs-dir {shlex.quote(str(self.path.parent))}"
        return f"{self.number}{where}"

    @property
    def stage(self) -> str:
        return self.name.split("-")[1]

    @property
    def given_name(self) -> str:
        """What `--name` gave it, or its preset; empty for a run without a name."""
        return "-".join(self.name.split("-")[2:])

    @property
    def former_names(self) -> list[str]:
        """Names of its folder before it was renamed, the oldest first."""
        names = self._stored().get("former_names")
        return [each for each in names if isinstance(each, str)] if isinstance(names, list) else []

    @property
    def model(self) -> Path:
        """The Hugging Face style folder of the newest saved model."""
        return self.path / MODEL

    @property
    def best(self) -> Path:
        """The folder of the model with the best held-out value, there where `model/` has a worse one."""
        return self.path / BEST

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def exports(self) -> Path:
        return self.path / "export"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def info(self) -> dict[str, Any]:
        """What run.json says; a damaged one reads as a failed run, one whose process is gone as a stopped run."""
        info = self._stored()
        if info.get("state") == "running" and not is_locked(self.path / LOCK):
            info["state"] = "stopped"
            info.setdefault("reason", "the process ended without saving its state")
        return info

    def _stored(self) -> dict[str, Any]:
        try:
            return self.read_info()
        except UserError:
            return {"stage": self.stage, "state": "failed", "reason": "run.json is missing or unreadable"}

    def read_info(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.path / "run.json"
        try:
            info: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            info = None
        if not _is_info(info):
            raise UserError(f"{path} is missing or damaged", f"restore it, or start a new run: mmcli {self.stage}")
        found: dict[str, Any] = info
        return found

    def update(self, **values: Any) -> None:
        """Change some keys of run.json."""
        write_json(self.path / "run.json", {**self._stored(), **values})

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run, so that no other process works on it; False where its file system has no locks.

        What a killed process has left in the run is removed first.

        Raises:
            UserError: another process holds it, or its folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(file_lock(self.path / LOCK))
            except Locked:
                raise self.still_running() from None
            except OSError as error:
                what = f"cannot lock {self.path / LOCK}: {error.strerror}"
                raise UserError(what, "check the permissions of that folder, or choose another --runs-dir") from None
            self.tidy(alone=held)
            yield held

    def tidy(self, *, alone: bool) -> list[Path]:
        """Remove what killed processes left in the run, and bring back what they had moved aside; the paths removed.

        Args:
            alone: the run is locked by this process.
        """
        removed = remove_leftovers(self.path, alone=alone) + remove_leftovers(self.checkpoints, alone=alone)
        return removed + remove_leftovers(self.exports, alone=False)  # exports are written without the run's lock

    def recover_model(self) -> None:
        """Bring an old model back where a process was killed that was replacing it."""
        for folder in (self.model, self.best):
            if not folder.exists() and not is_locked(self.path / LOCK):
                with contextlib.suppress(OSError):
                    recover(folder)

    def still_running(self) -> UserError:
        """The refusal of a run that another process works on."""
        return UserError(f"{self.name} is still running", "wait for it, or stop it first")

    def begin(self) -> None:
        """Say in run.json that this process, which holds the lock, works on the run."""
        info = {**self._stored(), "state": "running", "pid": os.getpid()}
        info.pop("reason", None)
        write_json(self.path / "run.json", info)

    def read_config(self, name: str = "config.toml") -> dict[str, Any]:
        """The tables of config.toml or resolved.toml; empty if there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / name
        try:
            text = path.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            what = f"{path} is damaged: {error}"
            raise UserError(what, f"restore it from a copy, or start a new run: mmcli {self.stage}") from None
        if name == RESOLVED and not self._is_sealed(text):
            what = f"{path} is damaged: it was shortened or edited"
            raise UserError(what, f"restore it from a copy, or start a new run: mmcli {self.stage}")
        return tables

    def _is_sealed(self, text: str) -> bool:
        above, found, digest = text.rpartition(SEAL)
        if not found:
            return not (self.path / INPUTS).exists()  # a run from before such files were sealed
        return hashlib.sha256(above.encode()).hexdigest() == digest.strip()

    def choose(self, key: str, choice: Callable[[], Any]) -> Any:
        """What resolved.toml holds for `key`; else `choice()`, stored there: a resumed run never chooses again."""
        chosen = self.read_config(RESOLVED)
        if key not in chosen:
            chosen = {**chosen, key: choice()}
            self.write_config({**self.read_config(RESOLVED), key: chosen[key]}, RESOLVED)  # it may have chosen, too
        return chosen[key]

    def record_choice(self, key: str, value: Any) -> None:
        """Change what resolved.toml holds for `key`: what resumes from now on goes by it."""
        self.write_config({**self.read_config(RESOLVED), key: value}, RESOLVED)

    def write_config(self, tables: Mapping[str, Any], name: str = "config.toml") -> None:
        """Write config.toml or resolved.toml; the latter ends in a digest of itself, as nobody edits it."""
        import tomli_w

        text = tomli_w.dumps(tables).encode()
        seal = f"{SEAL}{hashlib.sha256(text).hexdigest()}\n" if name == RESOLVED else ""
        write_atomic(self.path / name, text + seal.encode())

    def started_from(self) -> Path | None:
        """The model folder that it started from. One beside it is found beside it, also after both were moved."""
        stored = self.read_config(RESOLVED).get("start_from")
        return None if stored is None else where_now(self.path.parent / str(stored))

    @property
    def parent(self) -> Run | None:
        """The run that it started from, as long as that is there."""
        folder = self.started_from()
        return model_at(folder).run if folder is not None and folder.parent.is_dir() else None

    @classmethod
    def create(cls, runs_dir: Path, stage: str, label: str) -> Run:
        """A new folder with the next number; `label` is the preset's or the person's name for it.

        It is not running yet: hold its `lock`, then `begin`.
        """
        label = re.sub(r"[^\w.-]+", "-", label).strip("-") or "run"
        number = max((run.number for run in list_runs(runs_dir)), default=0)
        while True:
            number += 1
            path = runs_dir / f"{number:04d}-{stage}-{label}"
            try:
                if not _make_numbered(path, number):
                    continue
            except OSError as error:
                raise UserError(f"cannot make {path}: {error.strerror}", "choose another --runs-dir") from None
            run = cls(path)
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            info = {"stage": stage, "state": "stopped", "reason": "nothing was done yet", "started": started}
            write_json(path / "run.json", {**info, "command": _command_line()})
            return run


@dataclass(frozen=True)
class FollowedRun(Run):
    """A run as a process sees it that does not write it: rank 0 does."""

    @property
    def is_writable(self) -> bool:
        return False

    def update(self, **values: Any) -> None:
        """Nothing: rank 0 says it."""

    def begin(self) -> None:
        """Nothing: rank 0 says it."""

    def record_choice(self, key: str, value: Any) -> None:
        """Nothing: rank 0 records it."""

    def write_config(self, tables: Mapping[str, Any], name: str = "config.toml") -> None:
        """Nothing: rank 0 writes it."""


def _is_info(info: Any) -> bool:
    """True if this can be what run.json says."""
    if not isinstance(info, dict) or info.get("state") not in STATES:
        return False
    lists = [info.get(key, []) for key in ("metrics", "changes")]
    texts = [info.get(key) for key in ("started", "reason", "parent")]
    return all(isinstance(each, list) and all(isinstance(item, dict) for item in each) for each in lists) and all(
        isinstance(each, str | None) for each in texts
    )


def _command_line() -> list[str]:
    """What this process was called with: `mmcli ...`, or a Python program that uses mmcli."""
    program = Path(sys.argv[0])
    if program.stem == "mmcli" or program.parts[-2:] == ("mmcli", "__main__.py"):
        return ["mmcli", *sys.argv[1:]]
    return list(sys.orig_argv)


def _make_numbered(path: Path, number: int) -> bool:
    """Make the folder of a run; False where another run has its number, or is getting it from a process beside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reserved = path.parent / f".{number:04d}"
    try:
        reserved.mkdir()
    except FileExistsError:
        return False
    try:
        if any(run.number == number for run in list_runs(path.parent)):
            return False
        path.mkdir()
        return True
    finally:
        reserved.rmdir()


def list_runs(runs_dir: Path) -> list[Run]:
    """Every run folder, the oldest first."""
    if not runs_dir.is_dir():
        return []
    runs = [Run(path) for path in runs_dir.iterdir() if path.is_dir() and RUN_NAME.match(path.name)]
    return sorted(runs, key=lambda run: run.number)


@dataclass(frozen=True)
class ModelRef:
    """A model a person named: its folder, and the run it came from, if any."""

    path: Path
    run: Run | None

    @property
    def is_best(self) -> bool:
        """True of the `best/` of a run, which is not what the run ended with."""
        return self.run is not None and self.path.resolve().name == BEST

    @property
    def label(self) -> str:
        if self.run is None:
            return str(self.path)
        return f"{self.run.name}/{BEST}" if self.is_best else self.run.name

    @property
    def stage(self) -> str | None:
        """What it was trained for: `mmcli_stage` of its config.json, else the stage of its run; None: unknown."""
        try:
            said = json.loads((self.path / "config.json").read_text(encoding="utf-8")).get("mmcli_stage")
        except (OSError, ValueError, AttributeError):
            said = None
        return str(said) if said else self.run.stage if self.run else None


def where_now(path: Path) -> Path:
    """Where a run's folder, or what lies in it, is now: the run may have been renamed since this path was kept."""
    if path.exists():
        return path
    for folder in (path, *path.parents):
        if RUN_NAME.match(folder.name) and (run := formerly(folder.name, folder.parent)) is not None:
            return run.path / path.relative_to(folder)
    return path


def formerly(name: str, runs_dir: Path) -> Run | None:
    """The run whose folder had this name before it was renamed; the newest, should there be several."""
    return next((run for run in reversed(list_runs(runs_dir)) if name in run.former_names), None)


def model_at(folder: Path) -> ModelRef:
    """The model of a folder, with the run whose `model/` or `best/` it is, if it is one."""
    whole = folder.resolve()
    inside = whole.name in (MODEL, BEST) and RUN_NAME.match(whole.parent.name)
    return ModelRef(
        folder, Run(folder.parent if folder.parent.name == whole.parent.name else whole.parent) if inside else None
    )
