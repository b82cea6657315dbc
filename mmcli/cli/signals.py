"""SIGTERM and SIGHUP end a command as an exception does: `finally` blocks run, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mmcli.errors import Terminated


@contextlib.contextmanager
def raise_terminated() -> Iterator[list[int]]:
    """While entered, in the main thread, the first SIGTERM or SIGHUP raises `Terminated`; further ones do nothing.

    The list has the signals that came, SIGINT too: inside of an import or of a library's callback, what is raised for
    them may come out as another error. A signal that is ignored (`nohup`) stays ignored. With a handler they also reach
    the first process of a container.
    """
    before: dict[int, Any] = {}
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def terminate(number: int, frame: FrameType | None) -> None:
        for each in before:
            if each != signal.SIGINT:
                signal.signal(each, signal.SIG_IGN)
        received.append(number)
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, terminate)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
