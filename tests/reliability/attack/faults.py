"""Faults that a process does to itself at its n-th file event.

A file event is a file opened to write, a rename, a removal, a folder made, a flush to the disk, or a safetensors file
begun or written. What lies on the disk changes only with them, so a kill at every event is a kill at every moment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

KILLED = 137  # the exit code of a process that SIGKILL ended, as a shell says it
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


class Events:
    """Counts the file events of this process below a folder, and optimizer steps; `act` is done at the n-th."""

    def __init__(self, folder: str, at: int, act: Callable[[Any], None]) -> None:
        self.folder, self.at, self.act = folder, at, act
        self.seen: list[str] = []
        self._busy = False

    def count(self, what: str, target: Any = None) -> None:
        """One more event; `target` is the path or descriptor of a file that has just been written."""
        if self._busy:
            return
        self._busy = True
        self.seen.append(what)
        if len(self.seen) == self.at:
            self.act(target)
        self._busy = False

    def install(self) -> None:
        """Watch this process from now on."""
        import safetensors.torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        sys.addaudithook(self._audit)
        fsync, write = os.fsync, safetensors.torch.serialize_file

        def counted_fsync(descriptor: Any) -> None:
            self.count("fsync", descriptor)
            fsync(descriptor)

        def counted_write(tensors: Any, filename: Any, *rest: Any, **options: Any) -> None:
            self.count(f"begin {self._name(filename)}")
            write(tensors, filename, *rest, **options)
            self.count(f"written {self._name(filename)}", filename)

        os.fsync = counted_fsync
        safetensors.torch.serialize_file = counted_write
        register_optimizer_step_post_hook(lambda *_: self.count("step"))

    def _audit(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes)) and flags & WRITES and self._is_inside(path):
                self.count(f"open {self._name(path)}")
        elif name in CHANGES and isinstance(args[0], (str, bytes, os.PathLike)) and self._is_inside(args[0]):
            self.count(f"{name} {self._name(args[0])}")

    def _is_inside(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder + os.sep)

    def _name(self, path: Any) -> str:
        return os.path.relpath(os.fsdecode(path), self.folder)


def install(fault: dict[str, Any], folder: str) -> Events:
    """Arrange a fault of this process.

    Args:
        fault: `at`: number of the event, 0 for none; `kind`: "kill", "torn" (the file that was written last is cut in
            half first, as if the kill came while it was written) or "signal" with `signal`.
        folder: where events are counted; also where the list of them is written, as ../events.json.
    """

    def act(target: Any) -> None:
        if fault["kind"] == "signal":
            os.kill(os.getpid(), fault["signal"])
            return
        if fault["kind"] == "torn" and target is not None:
            _cut(target)
        os._exit(KILLED)

    events = Events(folder, fault.get("at", 0), act)
    events.install()
    return events


def _cut(target: Any) -> None:
    """Cut a file in half; a folder's descriptor, or one that is only read, stays."""
    try:
        size = os.stat(target).st_size
        os.truncate(target, size // 2)
    except OSError:
        return


def write_events(events: Events, path: str) -> None:
    """Keep the names of the events that were counted."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(events.seen, file)


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
