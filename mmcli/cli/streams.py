"""The standard streams: what cannot be written to stderr is lost, and ends nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class Unfailing:
    """A text stream whose writing never raises, whether its pipe is closed, its disk full or its terminal gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr() -> TextIO:
    """sys.stderr, unfailing."""
    return cast(TextIO, Unfailing(sys.stderr))


def open_standard_streams() -> None:
    """Give what was closed before the start (`2>&-`) a place, so that no file of ours becomes stdout or stderr.

    What an encoding lacks is written as \\uXXXX.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Nobody reads stdout any more: what is still written there is lost, and so is what waits in its buffer."""
    _to_devnull(sys.__stdout__)


def release_standard_streams() -> None:
    """Flush both at the end of the process; where that fails, leave nothing for the interpreter to fail at."""
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _to_devnull(stream)


def _to_devnull(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), cast(TextIO, stream).fileno())
