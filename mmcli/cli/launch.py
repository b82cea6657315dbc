"""`--nproc N`: the processes of a training on this machine, started, watched and ended together. No torch here.

Rank 0 speaks for all on the terminal; what the others say has their number before it. The processes are in groups of
their own, so that Ctrl-C reaches this one alone, which passes it on to rank 0: the ranks agree on it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

from mmcli.cli.console import escape_control
from mmcli.cli.streams import stderr
from mmcli.errors import MmcliError, UserError
from mmcli.ranks import LAUNCHED, RankLost, find_place
from mmcli.threads import usable_cores

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
PASSED_ON = (*ENDING, "SIGWINCH")
POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0  # between the request to end and the end
LINES_KEPT = 40
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `mmcli ARGUMENTS` as `count` processes that train together; the exit code.

    Raises:
        UserError: there is no process to start, or this is one of several already.
        MmcliError: one of them died.
    """
    if count < 1:
        raise UserError(f"--nproc {count} is below 1", "give the number of processes, such as 2")
    if find_place().world > 1:
        raise UserError(f"--nproc {count} in one of several processes", "leave it out: torchrun or srun starts them")
    processes: list[_Rank] = []
    passed_on: list[int] = []
    before = _pass_signals_on(processes, passed_on)
    try:
        port = _free_port()
        for rank in range(count):
            processes.append(_Rank(rank, count, arguments, port))
        return _watch(processes, passed_on)
    finally:
        _end(processes)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Rank:
    """One of the processes, which ends when this one is gone: it then reads the end of its stdin."""

    def __init__(self, rank: int, world: int, arguments: Sequence[str], port: int) -> None:
        self.rank = rank
        self.said: deque[str] = deque(maxlen=LINES_KEPT)
        threads = max(1, usable_cores() // world)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": LOOPBACK.get(sys.platform, ""),
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHED: "1"},
        }
        if not environment["GLOO_SOCKET_IFNAME"]:
            del environment["GLOO_SOCKET_IFNAME"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmcli", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else subprocess.PIPE,
            start_new_session=True,
        )
        self._reader: threading.Thread | None = None
        if self.process.stderr is not None:
            self._reader = threading.Thread(target=self._relay, args=(self.process.stderr,), daemon=True)
            self._reader.start()

    @property
    def code(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        return self.process.poll()

    def _relay(self, stream: IO[bytes]) -> None:
        """Keep what it says, and say it with its number before it."""
        for line in stream:
            text = escape_control(line.decode("utf-8", "replace").rstrip("\n"))
            self.said.append(text)
            stderr().write(f"rank {self.rank}: {text}\n")

    def join(self) -> None:
        """Wait for the rest of what it said."""
        if self._reader is not None:
            self._reader.join(timeout=1.0)


def _watch(processes: Sequence[_Rank], passed_on: Sequence[int]) -> int:
    """Wait until all are done or one has failed; the exit code of rank 0.

    Args:
        passed_on: the signals that rank 0 was sent; grows.

    Raises:
        MmcliError: another one is to blame.
    """
    while True:
        codes = [each.code for each in processes]
        if not any(codes):
            if None not in codes:
                return 0
            time.sleep(POLL_SECONDS)
            continue
        blamed, code = _blame(processes)
        if passed_on and code > 0 and (own := _own_end(processes[0])) is not None:
            return own  # it was told to end, and the others with it
        if blamed is processes[0] and 0 < code != RankLost.exit_code:
            return code  # it has said why
        _end(processes)
        blamed.join()
        raise _died(blamed, code)


def _blame(processes: Sequence[_Rank]) -> tuple[_Rank, int]:
    """The one that failed first, and its exit code: those that lost another wait for that one to be seen."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        failed = {each: code for each in processes if (code := each.code)}
        blamed = min(failed, key=lambda each: (failed[each] == RankLost.exit_code, failed[each] > 0, each.rank))
        if failed[blamed] != RankLost.exit_code or time.monotonic() > deadline:
            return blamed, failed[blamed]
        time.sleep(POLL_SECONDS)


def _own_end(rank: _Rank) -> int | None:
    """The exit code with which it ends within the time for that; None if it goes on, was killed or blames another."""
    deadline = time.monotonic() + GRACE_SECONDS
    while rank.code is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    code = rank.code
    return code if code is not None and code > 0 and code != RankLost.exit_code else None


def _died(rank: _Rank, code: int) -> MmcliError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    said = next((line for line in reversed(rank.said) if line.strip()), "")
    what = f"rank {rank.rank} (process {rank.process.pid}) {how}" + (f"; it said: {said.strip()}" if said else "")
    return MmcliError(what, "all ranks have ended; resume from the latest checkpoint: mmcli resume")


def _end(processes: Sequence[_Rank]) -> None:
    """End those that still run: first they are asked to, then they are killed."""
    for each in processes:
        if each.code is None:
            each.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while any(each.code is None for each in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for each in processes:
        if each.code is None:
            each.process.kill()
        each.process.wait()


def _pass_signals_on(processes: Sequence[_Rank], passed_on: list[int]) -> dict[int, Any]:
    """What is sent to this process goes to the first of `processes`; the handlers that were there before.

    Those that ask for the end are noted in `passed_on`.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        if processes and processes[0].code is None:
            if signal.Signals(number).name in ENDING:
                passed_on.append(number)
            processes[0].process.send_signal(number)

    before: dict[int, Any] = {}
    for name in PASSED_ON:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, pass_on)
    return before


def end_with_launcher() -> None:
    """In a process that `launch` started: stop as on SIGTERM once the launcher is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get(LAUNCHED):
        threading.Thread(target=wait, name="launcher", daemon=True).start()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
