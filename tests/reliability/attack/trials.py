"""Trials: one fault, what followed, and whether it is what docs/reliability.md promises."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attack.faults import KILLED, SIGNALS
from attack.scene import COMMANDS, NUMBERS, READERS, STAGES, Scene, difference, run_folder
from attack.server import TIMEOUT, Done

RECORDS_FOR_PEOPLE = ("run.json", "metrics.jsonl")  # nothing that is computed comes from them


@dataclass(frozen=True)
class Trial:
    """One fault and its outcome."""

    fault: str  # what was done, enough to do it again
    outcome: str  # a word or two, to be counted
    problem: str | None = None  # what broke a promise; None: it held


@dataclass(frozen=True)
class Counts:
    """The trials of one kind."""

    kind: str
    trials: tuple[Trial, ...]

    @property
    def problems(self) -> list[str]:
        return [f"{trial.fault}: {trial.problem}" for trial in self.trials if trial.problem]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(trial.outcome for trial in self.trials)


def _two_lines(done: Done) -> str | None:
    """What is wrong with a refusal: it ends in two lines, `error:` and `fix:`, and no traceback; None if nothing."""
    if done.code == TIMEOUT:
        return "it did not end"
    if "Traceback (most" in done.err:
        return f"a traceback: {done.err.strip().splitlines()[-1]}"
    if "bug in mmcli" in done.err:
        return f"called a bug: {done.err.strip().splitlines()[-2]}"
    if "error:" not in done.err or "fix:" not in done.err:
        return f"exit code {done.code} without two lines: {done.err[-300:]}"
    return None


def _finish(scene: Scene, trial: Path, stage: str) -> str | None:
    """Resume what is left of a run, or start it again if nothing is; what is not as in a run that never stopped."""
    run = run_folder(trial / "work", stage)
    if (run / "config.toml").is_file():
        done = scene.server.run(trial, "resume", str(int(run.name[:4])))
        if done.code == 2 and "is finished" in done.err:
            done = scene.server.run(trial, "runs", "list")
    else:
        done = scene.server.run(trial, *COMMANDS[stage])
    if done.code != 0:
        return f"resume ended with {done.code}: {done.err.strip()[-300:]}"
    return difference(run_folder(trial / "work", stage), scene.expected[stage])


def _spread(count: int, most: int, pick: random.Random) -> list[int]:
    """`count` of the numbers 1 to `most`: evenly spread from a random start, each once if there are enough."""
    start = pick.random()
    return [int((i + start) * most / count) % most + 1 for i in range(count)]


def kills(scene: Scene, count: int, seed: int = 0) -> Iterator[Trial]:
    """Runs of each stage killed at a file event; every third is killed once more while it resumes."""
    pick = random.Random(seed)
    for index, stage in enumerate(STAGES):
        share = count // 3 + (index < count % 3)
        for number, at in enumerate(_spread(share, len(scene.events[stage]), pick)):
            kind = "torn" if pick.random() < 0.5 else "kill"
            trial = scene.copy(f"before-{stage}")
            first = scene.server.run(trial, *COMMANDS[stage], fault={"kind": kind, "at": at})
            name = f"{stage} {kind} at {at} ({_event(scene, stage, at)})"
            if first.code != KILLED:
                yield Trial(name, "not reached", None if first.code == 0 else f"exit {first.code}: {first.err[-300:]}")
                continue
            if number % 3 == 2:
                run, again = run_folder(trial / "work", stage), pick.randrange(1, 40)
                if (run / "config.toml").is_file():
                    name += f", again at {again}"
                    scene.server.run(trial, "resume", str(int(run.name[:4])), fault={"kind": "kill", "at": again})
            problem = _finish(scene, trial, stage)
            left = _left_over(trial / "work", stage) if problem is None else None
            outcome = "differs" if problem else "same bytes, leftovers" if left else "same bytes"
            yield Trial(name, outcome, problem or left)


def _event(scene: Scene, stage: str, at: int) -> str:
    return scene.events[stage][at - 1]


def _left_over(work: Path, stage: str) -> str | None:
    """A temporary file or folder that a finished run still holds."""
    run = run_folder(work, stage)
    left = [path for path in run.rglob(".*") if path.name.endswith((".tmp", ".old", ".lock"))]
    return f"left over: {left[0].relative_to(work)}" if left else None


def signals(scene: Scene, count: int, seed: int = 0) -> Iterator[Trial]:
    """SIGINT, SIGTERM and SIGHUP while encoding, before the loop, in it, and while saving."""
    pick = random.Random(seed)
    for index in range(count):
        stage = STAGES[index // len(SIGNALS) // 4 % 3]
        number, phase = SIGNALS[index % len(SIGNALS)], index // len(SIGNALS) % 4
        at = pick.choice(_phases(scene.events[stage])[phase])
        name = f"{number.name} to {stage} at {at} ({_event(scene, stage, at)})"
        trial = scene.copy(f"before-{stage}")
        fault = {"kind": "signal", "at": at, "signal": int(number)}
        done = scene.server.run(trial, *COMMANDS[stage], fault=fault)
        problem = None
        if done.code not in (0, 128 + number):
            problem = f"exit code {done.code}: {done.err.strip()[-200:]}"
        elif done.code != 0 and (run_folder(trial / "work", stage) / "config.toml").is_file():
            problem = _two_lines(done)
        told = "told badly" if problem else None
        lost = _finish(scene, trial, stage)
        left = _left_over(trial / "work", stage) if lost is None else None
        outcome = "finished" if done.code == 0 else "stopped, same bytes"
        if lost or left or told:
            outcome = "differs" if lost else f"same bytes, {told or 'leftovers'}"
        yield Trial(name, outcome, lost or problem or left)


def _phases(events: Sequence[str]) -> list[list[int]]:
    """Numbers of the events while encoding, between that and the first step, of steps, and of saving."""
    encoding = [i for i, event in enumerate(events, 1) if "/tokens/" in event]
    steps = [i for i, event in enumerate(events, 1) if event == "step"]
    before = [i for i in range(1, steps[0]) if i not in encoding]
    saving = [i for i, event in enumerate(events, 1) if "/checkpoints/" in event or "/.model." in event]
    return [encoding, before, steps, saving]


# Damage to files


def damaged_files(scene: Scene) -> list[tuple[str, Path]]:
    """(what reads it, path below work/) of every file of a run, by kind."""
    found: list[tuple[str, Path]] = []
    for stage in STAGES:
        base = scene.folder / f"half-{stage}"
        run = run_folder(base, stage)
        found += [(stage, path.relative_to(base)) for path in sorted(run.rglob("*")) if path.is_file()]
        caches = sorted((base / "runs" / ".cache").rglob("*"))
        before = scene.folder / f"before-{stage}"
        found += [
            (stage, path.relative_to(base))
            for path in caches
            if path.is_file() and not (before / path.relative_to(base)).exists()
        ]
    whole = scene.folder / "whole"
    sft = run_folder(whole, "sft")
    for kind, folder in (("model", sft / "model"), ("export", sft / "export")):
        found += [(kind, path.relative_to(whole)) for path in sorted(folder.rglob("*")) if path.is_file()]
    tokenizer = run_folder(whole, "tokenizer") / "model"
    found += [("tokenizer", path.relative_to(whole)) for path in sorted(tokenizer.rglob("*")) if path.is_file()]
    return [(kind, path) for kind, path in found if path.suffix not in (".lock", ".tmp") and path.name != "run.lock"]


def flips(scene: Scene, count: int, seed: int = 0) -> Iterator[Trial]:
    """One bit of a file changed."""

    def flip(path: Path, pick: random.Random) -> str | None:
        data = bytearray(path.read_bytes())
        if not data:
            return None
        at, bit = pick.randrange(len(data)), pick.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {at}"

    yield from _damage(scene, count, random.Random(seed), flip)


def truncations(scene: Scene, count: int, seed: int = 0) -> Iterator[Trial]:
    """A file cut to a random length, a fifth of them to nothing."""

    def cut(path: Path, pick: random.Random) -> str | None:
        size = path.stat().st_size
        if size == 0:
            return None
        length = 0 if pick.random() < 0.2 else pick.randrange(size)
        with path.open("rb+") as file:
            file.truncate(length)
        return f"cut from {size} to {length} bytes"

    yield from _damage(scene, count, random.Random(seed + 1), cut)


def _damage(
    scene: Scene, count: int, pick: random.Random, damage: Callable[[Path, random.Random], str | None]
) -> Iterator[Trial]:
    files = [(kind, path) for kind, path in damaged_files(scene) if _source(scene, kind, path).stat().st_size]
    pick.shuffle(files)
    for index in range(count):
        kind, path = files[index % len(files)]
        trial = scene.copy(f"half-{kind}" if kind in STAGES else _base(kind))
        target = trial / "work" / path
        what = damage(target, pick)
        name = f"{path}: {what} (read by {kind})"
        yield _read_damaged(scene, trial, kind, path, name)


def _base(kind: str) -> str:
    return "before-pretrain" if kind == "tokenizer" else "whole"


def _source(scene: Scene, kind: str, path: Path) -> Path:
    return scene.folder / (f"half-{kind}" if kind in STAGES else _base(kind)) / path


def _read_damaged(scene: Scene, trial: Path, kind: str, path: Path, name: str) -> Trial:
    """Let the command that reads a damaged file read it."""
    if kind in STAGES:
        done = scene.server.run(trial, "resume", str(NUMBERS[kind]))
    else:
        done = scene.server.run(trial, *READERS[kind])
    named = _names(done.err, path)
    if done.code != 0:
        problem = _two_lines(done)
        if problem is None and not named:
            problem = f"refused without naming the file: {done.err.strip()[-300:]}"
        return Trial(name, "refused by name" if problem is None else "told badly", problem)
    if kind in STAGES:
        problem = difference(run_folder(trial / "work", kind), scene.expected[kind])
        if path.name in RECORDS_FOR_PEOPLE and problem == "metrics differs":
            return Trial(name, "a record's own line")
    elif kind == "tokenizer":
        problem = difference(run_folder(trial / "work", "pretrain"), scene.expected["pretrain"])
    else:
        expected = scene.answers[kind]
        problem = None if done.out == expected else f"answers {done.out!r} instead of {expected!r}"
    if problem is None:
        return Trial(name, "named, same bytes" if named else "same bytes")
    return Trial(name, "named, other bytes" if named else "silently other", f"{problem}: {done.err.strip()[-200:]}")


def _names(said: str, path: Path) -> bool:
    """True if a text names a file, or its folder: checkpoints/step-000004, 0003-sft-tiny/model."""
    folder = f"{path.parent.parent.name}/{path.parent.name}"
    return path.name in said or (len(path.parts) > 3 and folder in said)


# Disks


def disks(scene: Scene, count: int) -> Iterator[Trial]:
    """Runs on a disk of each of `count` sizes, from one that holds nothing to one that holds all but the last file."""
    base = scene.folder / "before-sft"
    used = _blocks(base)
    need = _blocks(scene.folder / "half-sft") - used + 400
    for index in range(count):
        size = used + 8 + need * index // count
        trial = scene.folder / "disk"
        shutil.rmtree(trial, ignore_errors=True)
        (trial / "work").mkdir(parents=True)
        with _small_disk(trial / "work", size):
            shutil.copytree(base, trial / "work", dirs_exist_ok=True)
            done = scene.server.run(trial, *COMMANDS["sft"])
            problem = _two_lines(done) if done.code else None
            outcome = "finished" if done.code == 0 else "two lines, resumed to the same bytes"
            wider = ["mount", "-o", "remount,size=64m", str(trial / "work")]
            subprocess.run(wider, check=True)
            lost = _finish(scene, trial, "sft") or _left_over(trial / "work", "sft")
            outcome = "lost" if lost else "resumed to the same bytes, told badly" if problem else outcome
        yield Trial(f"a disk of {size} KiB", outcome, lost or problem)


def can_mount(folder: Path) -> bool:
    """True if this process may mount a tmpfs (root on Linux)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _small_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _small_disk(folder: Path, kib: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _blocks(folder: Path) -> int:
    """KiB of a folder's files in pages of 4 KiB, as tmpfs counts them."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())
