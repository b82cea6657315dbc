"""A lock is one open file's, ends with its process, and is inherited by nobody."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcli import lock
from mmcli.lock import Locked, file_lock, is_locked

HOLD = """
import sys, time
from pathlib import Path
from mmcli.lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_holds_it_and_the_file_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with file_lock(path) as held:
        assert held and is_locked(path)
        with pytest.raises(Locked), file_lock(path):
            pass
        assert is_locked(path)
    assert not is_locked(path)
    assert not path.exists()


def test_it_is_given_up_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), file_lock(tmp_path / "lock"):
        raise ZeroDivisionError
    with file_lock(tmp_path / "lock") as held:
        assert held


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        assert is_locked(path)
        with pytest.raises(Locked), file_lock(path):
            pass
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
        assert not is_locked(path)
        with file_lock(path) as held:
            assert held


def test_a_child_process_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        assert not is_locked(path)
        with file_lock(path) as held:
            assert held
    finally:
        child.kill()
        child.wait()


def test_a_forked_child_neither_keeps_nor_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    asked, answered = os.pipe()
    child = 0
    try:
        with file_lock(path):
            child = os.fork()
            if child == 0:
                os.read(asked, 1)  # until the parent has left the block
                os._exit(0)
            assert is_locked(path)
        assert not is_locked(path)
        with file_lock(path):
            leaver = os.fork()
            if leaver == 0:
                raise SystemExit  # leaves the block as an exception does
            os.waitpid(leaver, 0)
            assert path.exists() and is_locked(path)
    except SystemExit:
        os._exit(0)
    finally:
        os.write(answered, b"x")
        os.waitpid(child, 0)


def test_looking_does_not_get_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_locked(path)

    watchers = [threading.Thread(target=look) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(50):
            with file_lock(path) as held:
                assert held
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_only_one_of_many_gets_it(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(30):
            with contextlib.suppress(Locked), file_lock(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(tmp_path / "lock") as held:
        assert held is False
        assert not is_locked(tmp_path / "lock")
    assert not lock._held
    assert not (tmp_path / "lock").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "none" / "lock"):
        pass
    assert not is_locked(tmp_path / "none" / "lock")
