"""Locks of the operating system: one ends with the process that holds it, however that process ends.

`flock` on a file (Linux, macOS), a locked byte of it on Windows. The lock belongs to the open file, which no child
process inherits: a worker that outlives its parent does not keep the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # network file systems
PATIENCE_SECONDS = 0.5  # somebody may only be looking (`is_locked`)

_held: set[int] = set()  # file descriptors of the locks of this process


class Locked(Exception):
    """Another open file holds the lock: of another process, or of this one."""


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which exists only as long as it is locked; False where the file system has no locks.

    Raises:
        Locked: it is held.
        OSError: the file cannot be made.
    """
    descriptor = _open_locked(path)
    if descriptor is None:
        yield False
        return
    _held.add(descriptor)
    try:
        yield True
    finally:
        if descriptor in _held:  # not in a forked child
            _held.discard(descriptor)
            _remove(path, descriptor)


def is_locked(path: Path) -> bool:
    """True while somebody holds the lock of a file; False too where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    """The descriptor of the locked file; None where the file system has no locks."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _try_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return None
        if locked and _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)
        if not locked and time.monotonic() > deadline:
            raise Locked(str(path))
        time.sleep(0.01)


def _is_at(path: Path, descriptor: int) -> bool:
    """True if the open file is still the one at `path`: its last holder may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # a module that is not there

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file without waiting; False if it is held. There are no shared locks."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in BUSY:
                return False
            raise
        return True

    def _remove(path: Path, descriptor: int) -> None:
        """Give the lock up and remove its file, unless somebody has it open."""
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()

else:

    def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file without waiting; False if it is held."""
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no flock")
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                return False
            raise
        return True

    def _remove(path: Path, descriptor: int) -> None:
        """Remove the file, then give its lock up: nobody can lock a file that is about to go."""
        path.unlink(missing_ok=True)
        os.close(descriptor)

    def _forget() -> None:
        """A forked child closes its copies of the locks, which leaves them to the parent."""
        for descriptor in _held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        _held.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
