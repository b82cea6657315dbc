"""Signals end a training after the step in hand, so that it can be saved."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAYS = "saving; Ctrl-C again discards"


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is only noted in `received`; a second SIGINT stops at once.

    Python calls a handler between two bytecodes, which may be a whole backward pass after the signal. So a thread,
    woken by the C handler itself, tells the person at once. A signal that is ignored (`nohup`) stays ignored.
    """

    def __init__(self, say: Callable[[str], None] | None) -> None:
        """
        Args:
            say: shows one line to the person, called from that thread; None: another process that is stopped does.
        """
        self._say = say
        self.received: int | None = None
        self._interruptible = False
        self._before: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            if self._say is not None:
                self._stack.enter_context(_telling(self._say))
            for number in ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._stack.close()

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where a signal ends it. For what changes nothing, such as a validation."""
        try:
            try:
                self._interruptible = True
                return work()
            finally:
                self._interruptible = False
        except _Ended:
            return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = self.received or number
        if self._interruptible:
            raise _Ended
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt


class _Ended(BaseException):
    """A signal that came while `StopSignals.interruptible` was at work."""


@contextlib.contextmanager
def _telling(say: Callable[[str], None]) -> Any:
    """Say, within milliseconds of the first signal, that the training is being saved."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def tell() -> None:
        while (woken := reader.recv(1)) and woken[0] not in ENDING:
            pass
        if woken:
            say(SAYS)

    thread = threading.Thread(target=tell, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
