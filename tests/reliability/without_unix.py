"""Takes from Python what only Unix has, as Windows shows it.

Gone are fcntl, resource, termios, fork and what goes with it, SIGHUP, affinity; folders cannot be opened, and
`os.kill(pid, 0)`, which would end a process there, is an error.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import Any

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog")
CALLS = (
    *("fork", "forkpty", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "geteuid", "getuid", "getpgid"),
    *("setsid", "killpg", "mkfifo", "uname", "nice", "getloadavg", "wait3", "wait4", "chown", "fchmod"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "pread", "pwrite", "sendfile", "posix_fadvise"),
    *("posix_fallocate", "sysconf", "WNOHANG", "getgid", "getegid"),
)
SIGNALS = ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGXFSZ", "pthread_sigmask", "setitimer")


def _import_others() -> None:
    """Import what of the standard library and of other packages takes its own Unix way, before it is closed."""
    import asyncio
    import concurrent.futures
    import multiprocessing
    import platform
    import random
    import secrets
    import subprocess
    import tempfile
    import uuid

    import datasets
    import onnxruntime
    import torch._dynamo

    assert asyncio and concurrent.futures and multiprocessing and platform and random and secrets
    assert subprocess and tempfile and uuid and datasets and onnxruntime and torch._dynamo


def take_away() -> None:
    """Do it to this process, before mmcli is imported."""
    _import_others()
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError
    for name in CALLS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # as it is there: rmtree goes by paths
    opened, kill = os.open, os.kill

    def open_no_folder(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *rest, **options)

    def kill_no_probe(pid: int, number: int) -> None:
        assert number != 0, "os.kill(pid, 0) ends a process on Windows"
        kill(pid, number)

    os.open, os.kill = open_no_folder, kill_no_probe
