"""Programs that a model wrote, run apart from everything: in a process of their own, with little that they may do.

What holds a program, each where the system has it:

| | by |
|---|---|
| files: it reads Python's own and writes to an empty folder that is removed, nothing else | Landlock (Linux 5.13) |
| no network, and its processes end with it | namespaces (`unshare`), else Landlock's ban on TCP (Linux 6.7) |
| CPU seconds, memory, size of files, processes, open files | resource limits |
| seconds on the clock | its process group is killed |
| nothing of the environment: no variables, no packages but the standard library | `python -I -S` |

It is no virtual machine: the kernel is shared, and so is what it can read of `/proc` without files. A program that is
made to deceive (to say that it passed) can. It keeps a model's mistakes from your files, not an attacker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.api import UserError
from mmcli_eval import confined

GRACE_SECONDS = 10.0  # on the clock, beyond the CPU seconds: the machine may be busy
UNSHARE = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: CPU time.
        memory: MB of address space.
        files: False: it is run without Landlock, where the system has none.
    """

    seconds: float = 5.0
    memory: int = 512
    files: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool  # it ran to its end
    said: str = ""  # else why not, in one line


def protection(limits: Limits) -> str:
    """What holds a program on this machine, in words.

    Raises:
        UserError: the system cannot keep it from files, and the limits ask for that; or it has no resource limits.
    """
    if not confined.has_limits():
        raise UserError("this system has no resource limits for programs", "run it on Linux, or in a container")
    abi = confined.landlock_version()
    if limits.files and abi < 1:
        what = "this system cannot keep the programs of a model from your files (no Landlock)"
        raise UserError(what, "run it in a container that may be lost, and add unsandboxed=true")
    network = "no network" if _unshare() or abi >= 4 else "network"
    files = "only files of its own" if limits.files else "your files"
    return f"{files}, {network}, {limits.seconds:g} s, {limits.memory} MB"


@functools.cache
def _unshare() -> tuple[str, ...]:
    """The command that gives a program namespaces of its own; empty where that is not allowed."""
    found = shutil.which("unshare")
    if found is None:
        return ()
    done = subprocess.run([found, *UNSHARE, "true"], capture_output=True, timeout=GRACE_SECONDS)
    return (found, *UNSHARE) if done.returncode == 0 else ()


def run_program(program: str, limits: Limits) -> Outcome:
    """Run a Python program to its end, or to its limits."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="mmcli-program-", ignore_cleanup_errors=True) as folder:
        told: dict[str, Any] = {"program": program, "token": token, "folder": folder}
        told |= {"seconds": limits.seconds, "memory": limits.memory, "files": limits.files}
        process = subprocess.Popen(
            [*_unshare(), sys.executable, "-I", "-S", "-B", str(Path(confined.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(json.dumps(told).encode(), timeout=limits.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"did not end within {limits.seconds + GRACE_SECONDS:g} seconds")
        finally:
            _kill(process)
    last = out.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if last == token:
        return Outcome(True)
    if last.startswith(token):
        return Outcome(False, last.removeprefix(token).strip())
    return Outcome(False, f"left before its end, or was killed at a limit (exit code {process.returncode})")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started in its group."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
