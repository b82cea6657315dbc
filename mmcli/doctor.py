"""What a training would meet on this machine: versions, devices, speed, room, and what is wrong, with what to do."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mmcli import machine
from mmcli.errors import UserError
from mmcli.run import Run, list_runs
from mmcli.threads import cpu_quota, usable_cores

LIBRARIES = ("torch", "tokenizers", "numpy", "safetensors", "datasets", "onnx", "onnxruntime")
MEMORY_BASES = ("tmpfs", "ramfs")
LITTLE_MEMORY = 2 * 10**9
LITTLE_DISK, NO_DISK = 5 * 10**9, 2 * 10**8
BUSY_SHARE = 0.3  # of the usable cores: from here on, others slow the threads of a training down
EXTRA = re.compile(r"""^([A-Za-z0-9._-]+).*;.*extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "error" makes training impossible; a "warning" makes it slower, or lose something.
        fix: what to do, in the imperative; empty where all is well.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    text: str
    fix: str = ""


def examine(runs_dir: Path) -> Iterator[Finding]:
    """Every finding, each as soon as it is known; it takes a few seconds, most of them to import torch."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield from check_libraries()
    yield from check_cpu()
    yield from check_memory(machine.memory())
    yield from check_disk(runs_dir)
    yield from check_load(machine.load_average(), machine.busy_processes(), usable_cores())
    yield from check_torch()
    yield check_extras()
    yield from check_runs(runs_dir)


def check_libraries(version: Callable[[str], str] = metadata.version) -> Iterator[Finding]:
    """The versions of mmcli and of what it needs."""
    found, missing = [], []
    for name in ("mmcli", *LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("libraries", "ok", ", ".join(found))
    for name in missing:
        fix = "install mmcli with pip" if name == "mmcli" else f"pip install {name}"
        yield Finding("libraries", "error" if name in LIBRARIES[:4] else "warning", f"{name} is not installed", fix)


def check_cpu() -> Iterator[Finding]:
    """The processor, and how much of it a container or an affinity leaves."""
    cores, usable, limit = os.cpu_count() or 1, usable_cores(), cpu_quota()
    text = f"{machine.cpu_name()}, {cores} cores" + (f", {usable} of them usable" if usable < cores else "")
    yield Finding("cpu", "ok", text + (f", limited to {limit:.3g} by the container" if limit is not None else ""))


def check_memory(found: machine.Memory | None) -> Iterator[Finding]:
    """Main memory and swap."""
    if found is None:
        return
    text = f"{_gigabytes(found.available)} free of {_gigabytes(found.limit or found.total)}"
    text += f", swap {_gigabytes(found.swap_used)} used" if found.swap_used else ""
    text += " (the container's limit)" if found.limit is not None else ""
    if found.available < LITTLE_MEMORY:
        yield Finding("memory", "warning", text, "close other programs, or train with a small --micro-batch")
    elif found.swap_used > 0.25 * found.swap_total:
        yield Finding("memory", "warning", text, "close other programs: a training that swaps takes many times as long")
    else:
        yield Finding("memory", "ok", text)


def check_disk(runs_dir: Path, file_system: Callable[[Path], str | None] = machine.file_system) -> Iterator[Finding]:
    """Room and permissions where the runs go."""
    place = next((each for each in (runs_dir.absolute(), *runs_dir.absolute().parents) if each.exists()), Path("/"))
    other = "choose another folder: --runs-dir DIR, or export MMCLI_RUNS=DIR"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding("disk", "error", f"{runs_dir} cannot be written: {error.strerror}", other)
        return
    free = shutil.disk_usage(place).free
    text = f"{_gigabytes(free)} free for {runs_dir}"
    if free < LITTLE_DISK:
        state: Literal["error", "warning"] = "error" if free < NO_DISK else "warning"
        yield Finding("disk", state, text, f"free some space, or {other}")
    else:
        yield Finding("disk", "ok", text)
    if (kind := file_system(place)) in MEMORY_BASES:
        yield Finding("disk", "warning", f"{runs_dir} lies in memory ({kind}): a restart loses all runs", other)


def check_load(load: float | None, processes: list[machine.Busy], cores: int) -> Iterator[Finding]:
    """Whether others compute here: threads that wait for a core make a step several times slower."""
    taken = sum(each.cores for each in processes)
    average = f"load {load:.1f} on {cores} cores" if load is not None else f"{cores} cores"
    if taken < BUSY_SHARE * cores:
        yield Finding("load", "ok", average)
        return
    shown = ", ".join(f"{each.name} (pid {each.pid}) {each.cores:.0%}" for each in processes[:3])
    free = max(1, round(cores - taken))
    fix = f"wait for them or stop them, or leave them their cores: export OMP_NUM_THREADS={free}"
    yield Finding("load", "warning", f"{average}; others compute: {shown} of a core", fix)


def check_torch() -> Iterator[Finding]:
    """torch, the device that a training takes, threads, the rate of matrix products, and a compiler."""
    try:
        import torch

        from mmcli.model.device import choose_device
        from mmcli.train.device import can_compile, describe_device
        from mmcli.train.speed import prefers_bf16, product_rates

        device = choose_device("auto")
        threads, rates = torch.get_num_threads(), product_rates(device)
    except Exception as error:  # a broken installation fails in ways of its own
        first = (str(error).splitlines() or [""])[0]
        yield Finding("torch", "error", f"torch does not work: {type(error).__name__}: {first}", "pip install -U torch")
        return
    count = f", {threads} thread{'s' if threads != 1 else ''}" if device.type == "cpu" else ""
    yield Finding("device", "ok", describe_device(device) + count)
    if device.type == "cpu":
        yield from _check_cpu_build(threads)
    shown = ", ".join(f"{name} {_flops(rate)}" for name, rate in rates.items())
    text = f"{shown}: --precision auto takes {'bf16' if prefers_bf16(rates) else 'fp32'}"
    yield Finding("matrix rate", "ok", text)
    if can_compile(device):
        yield Finding("compiler", "ok", "torch.compile has what it needs")
    else:
        fix = "install g++, such as: apt install g++" if device.type == "cpu" else "pip install triton"
        yield Finding("compiler", "warning", "long runs are not compiled: torch.compile finds no compiler", fix)


def _check_cpu_build(threads: int) -> Iterator[Finding]:
    """What a torch that computes on the CPU lacks."""
    import torch

    if Path("/dev/nvidia0").exists() and not torch.cuda.is_available():
        build = "is a build without CUDA" if torch.version.cuda is None else "cannot use it: the driver may be too old"
        fix = "install the build for your driver: https://pytorch.org/get-started"
        yield Finding("device", "warning", f"there is an NVIDIA GPU, but torch {build}", fix)
    if not torch.backends.mkldnn.is_available():
        yield Finding("torch", "warning", "torch was built without oneDNN: it is slow", "pip install -U torch")
    elif platform.machine() in ("x86_64", "AMD64") and not torch.backends.mkl.is_available():
        yield Finding("torch", "warning", "torch was built without MKL: products are slow", "pip install -U torch")
    usable = usable_cores()
    if threads > usable:
        what = f"torch uses {threads} threads on {usable} cores: they wait for each other"
        yield Finding("threads", "warning", what, f"export OMP_NUM_THREADS={usable}")


def check_extras(requires: Callable[[str], list[str] | None] = metadata.requires) -> Finding:
    """The optional packages, and how the missing ones are installed."""
    needed: dict[str, list[str]] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in requires("mmcli") or []:
            if match := EXTRA.match(line):
                needed.setdefault(match[2], []).append(match[1])
    parts = []
    for extra, packages in sorted(needed.items()):
        if extra in ("dev", "browser", "fuzz"):  # of mmcli's own tests
            continue
        there = all(_is_installed(each) for each in packages)
        parts.append(f"{extra} installed" if there else f'{extra} not installed (pip install "mmcli[{extra}]")')
    return Finding("extras", "ok", "; ".join(parts) or "none")


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_runs(runs_dir: Path) -> Iterator[Finding]:
    """Runs that can be resumed, and those whose own files cannot be read. No large file is opened."""
    runs, resumable, damaged = list_runs(runs_dir), [], []
    for run in runs:
        if (problem := _problem(run)) is not None:
            damaged.append((run, problem))
        elif run.info()["state"] in ("stopped", "failed") and any(run.checkpoints.glob("step-*")):
            resumable.append(run)
    text = f"{len(runs)} in {runs_dir}"
    if resumable:
        newest = resumable[-1]
        text += f", {len(resumable)} to be resumed; the newest: mmcli resume {newest.reference}"
    yield Finding("runs", "ok", text)
    for run, problem in damaged:
        fix = f"look at all of it: mmcli runs verify {run.reference}"
        yield Finding("runs", "warning", problem, fix)


def _problem(run: Run) -> str | None:
    try:
        run.read_info()
        run.read_config()
        run.read_config("resolved.toml")
    except UserError as error:
        return error.what
    return None


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.1f} GFLOP/s"
