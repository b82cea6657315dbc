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
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.errors import MmcliError, UserError, did_you_mean
from mmcli.lock import Locked, file_lock, is_locked

MANIFEST = "manifest.json"
ONNX_GRAPH = "model.onnx"  # in a folder that is an ONNX export
LOCK = "run.lock"  # there only while a process works on the run, or where one was killed
_RUN_NAME = re.compile(r"^(\d{4,})-([a-z0-9_]+)-(.+)$|^(\d{4,})-([a-z0-9_]+)$")


# Atomic files: written beside, flushed to the disk, renamed; whole or absent.


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MmcliError(f"cannot write {path}: {error.strerror}", "free space or choose another --runs-dir") from None


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, seal it with a manifest, then rename it into place (replacing an old one)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        _seal(beside)
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
        _sync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MmcliError(f"cannot write {path}: {error}", "free space or choose another --runs-dir") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Flush every file and write the SHA-256 of each into the manifest."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb+") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    write_json(folder / MANIFEST, digests)
    _sync_directory(folder)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder: the first missing or changed file, or None if it is whole."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder / MANIFEST} is missing or unreadable"
    for name, digest in digests.items():
        try:
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{folder / name} is damaged"
        except OSError:
            return f"{folder / name} is missing"
    return None


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def number(self) -> int:
        return int(self.name.split("-", 1)[0])

    @property
    def stage(self) -> str:
        return self.name.split("-")[1]

    @property
    def model(self) -> Path:
        """The Hugging Face style folder of the newest saved model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

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
            info: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            info = {"stage": self.stage, "state": "failed", "reason": "run.json is missing or unreadable"}
        return info

    def update(self, **values: Any) -> None:
        """Change some keys of run.json."""
        write_json(self.path / "run.json", {**self._stored(), **values})

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run, so that no other process works on it; False where its file system has no locks.

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
            yield held

    def still_running(self) -> UserError:
        """The refusal of a run that another process works on."""
        return UserError(f"{self.name} is still running", "wait for it, or stop it first")

    def begin(self) -> None:
        """Say in run.json that this process, which holds the lock, works on the run."""
        info = {**self._stored(), "state": "running", "pid": os.getpid()}
        info.pop("reason", None)
        write_json(self.path / "run.json", info)

    def read_config(self, name: str = "config.toml") -> dict[str, Any]:
        """The tables of config.toml or resolved.toml; empty if there is none."""
        try:
            return tomllib.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def choose(self, key: str, choice: Callable[[], Any]) -> Any:
        """What resolved.toml holds for `key`; else `choice()`, stored there: a resumed run never chooses again."""
        chosen = self.read_config("resolved.toml")
        if key not in chosen:
            chosen[key] = choice()
            self.write_config(chosen, "resolved.toml")
        return chosen[key]

    def write_config(self, tables: Mapping[str, Any], name: str = "config.toml") -> None:
        import tomli_w

        write_atomic(self.path / name, tomli_w.dumps(tables).encode())

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
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"cannot make {path}: {error.strerror}", "choose another --runs-dir") from None
            run = cls(path)
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            info = {"stage": stage, "state": "stopped", "reason": "nothing was done yet", "started": started}
            write_json(path / "run.json", {**info, "command": _command_line()})
            return run


def _command_line() -> list[str]:
    """What this process was called with: `mmcli ...`, or a Python program that uses mmcli."""
    program = Path(sys.argv[0])
    if program.stem == "mmcli" or program.parts[-2:] == ("mmcli", "__main__.py"):
        return ["mmcli", *sys.argv[1:]]
    return list(sys.orig_argv)


def list_runs(runs_dir: Path) -> list[Run]:
    """Every run folder, the oldest first."""
    if not runs_dir.is_dir():
        return []
    runs = [Run(path) for path in runs_dir.iterdir() if path.is_dir() and _RUN_NAME.match(path.name)]
    return sorted(runs, key=lambda run: run.number)


@dataclass(frozen=True)
class ModelRef:
    """A model a person named: its folder, and the run it came from, if any."""

    path: Path
    run: Run | None

    @property
    def label(self) -> str:
        return self.run.name if self.run else str(self.path)


def find_run(ref: str, runs_dir: Path, *, stage: str | None = None) -> Run:
    """A run by number, name, folder, `latest` or `latest:STAGE`.

    Raises:
        UserError: there is none.
    """
    runs = [run for run in list_runs(runs_dir) if stage is None or run.stage == stage]
    if not runs:
        raise UserError(f"there is no run in {runs_dir}", "train one: mmcli pretrain")
    newest, _, of_stage = ref.partition(":")
    if newest == "latest":
        chosen = [run for run in runs if not of_stage or run.stage == of_stage]
        if not chosen:
            stages = ", ".join(dict.fromkeys(run.stage for run in runs))
            raise UserError(f'there is no run of stage "{of_stage}" in {runs_dir}', f"stages with runs: {stages}")
        return chosen[-1]
    for run in runs:
        if ref in (run.name, str(run.number), f"{run.number:04d}") or Path(ref).resolve() == run.path.resolve():
            return run
    raise UserError(f'there is no run "{ref}" in {runs_dir}', "see them with: mmcli runs list")


def find_model(ref: str, runs_dir: Path) -> ModelRef:
    """The model a person named: a run (see `find_run`) that has a `model/`, or a model folder.

    `latest` passes over runs without a language model; `latest:tokenizer` finds a tokenizer run.

    Raises:
        UserError: there is none.
    """
    newest, _, of_stage = ref.partition(":")
    if newest == "latest":
        runs = [run for run in list_runs(runs_dir) if (run.model / "tokenizer.json").is_file()]
        chosen = [run for run in runs if (run.stage == of_stage if of_stage else (run.model / "config.json").is_file())]
        if not chosen:
            kind = f'run of stage "{of_stage}" with a model' if of_stage else "trained model yet"
            raise UserError(f"there is no {kind} in {runs_dir}", _how_to_get(of_stage, runs_dir))
        return ModelRef(chosen[-1].model, chosen[-1])
    folder = Path(ref)
    if any((folder / name).is_file() for name in ("config.json", "tokenizer.json", ONNX_GRAPH)):
        inside = Run(folder.parent) if _RUN_NAME.match(folder.resolve().parent.name) else None
        return ModelRef(folder, inside if folder.name == "model" else None)
    run = find_run(ref, runs_dir)
    if not (run.model / "tokenizer.json").is_file():
        what = f"{run.name} has no saved model (state: {run.info()['state']})"
        raise UserError(what, f"resume it: mmcli resume {ref}")
    return ModelRef(run.model, run)


def find_language_model(ref: str, runs_dir: Path) -> ModelRef:
    """The model a person named (see `find_model`), which must be more than a tokenizer.

    Raises:
        UserError: there is none, or it is a tokenizer.
    """
    found = find_model(ref, runs_dir)
    if not (found.path / "config.json").is_file():
        raise UserError(f"{found.label} is a tokenizer without a model", "train one: mmcli pretrain")
    return found


def _how_to_get(stage: str, runs_dir: Path) -> str:
    """Advice where `latest` or `latest:STAGE` finds no model: the command that makes one, or the closest stage."""
    commands = {"pretrain": "pretrain", "sft": "sft", "dpo": "dpo", "tokenizer": "tokenizer train", "import": "import"}
    commands = {**{run.stage: run.stage for run in list_runs(runs_dir)}, **commands}  # stages of plugins, too
    if not stage or stage in commands:
        return f"run: mmcli {commands[stage or 'pretrain']}"
    return did_you_mean(stage, list(commands))


def find_unfinished(runs_dir: Path, stage: str | None = None) -> Run:
    """The newest run of `stage` that can be resumed: not finished, with a stored config.

    Raises:
        UserError: there is none, or it is still running.
    """
    of = f" of stage {stage}" if stage else ""
    for run in reversed(list_runs(runs_dir)):
        if (stage is None or run.stage == stage) and (run.path / "config.toml").is_file():
            state = run.info()["state"]
            if state in ("stopped", "failed"):
                return run
            if state == "running":
                raise run.still_running()
    raise UserError(f"there is no unfinished run{of} in {runs_dir}", f"start one: mmcli {stage or 'pretrain'}")
