"""The process that a program runs in: it gives up what it may do, then runs the program. The standard library alone.

It reads {"program", "token", "folder", "seconds", "memory", "files"} from stdin, and writes the token to stdout once
the program has run to its end, or the token and what the program raised.
"""

import ctypes
import json
import math
import os
import signal
import sys
import sysconfig

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # a module that is not there

# Landlock's numbers, the same on every architecture (linux/landlock.h).
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1
NO_NEW_PRIVS = 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MADE_AND_REMOVED = sum(1 << bit for bit in range(4, 13))  # folders, files, links, sockets, devices
REFER, TRUNCATE, DEVICES = 1 << 13, 1 << 14, 1 << 15  # since versions 2, 3, 5
CONNECTIONS = 0b11  # bind and connect over TCP, since version 4
SIGNALS_AND_SOCKETS = 0b11  # abstract sockets and signals to others, since version 6
READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/dev/urandom")
FILE_BYTES, OPEN_FILES = 16 * 2**20, 64


class Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def has_limits() -> bool:
    """The system has resource limits."""
    return resource is not None


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION)))


def restrict_files(folder: str) -> None:
    """Leave this process Python's own files to read, and `folder` to write; no TCP where the kernel can refuse it.

    Raises:
        OSError: the kernel refuses.
    """
    libc, version = ctypes.CDLL(None, use_errno=True), landlock_version()
    newer = (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0) | (DEVICES if version >= 5 else 0)
    every = EXECUTE | WRITE_FILE | READ_FILE | READ_DIR | MADE_AND_REMOVED | newer
    rules = Ruleset(every, CONNECTIONS if version >= 4 else 0, SIGNALS_AND_SOCKETS if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24

    def call(number: int, *arguments: object) -> int:
        found = int(libc.syscall(number, *arguments))
        if found < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return found

    ruleset = call(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    own = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    paths = {folder: every & ~EXECUTE & ~DEVICES, "/dev/null": READ_FILE | WRITE_FILE}
    paths |= {path: READ_FILE | READ_DIR for path in (*own, *READABLE)}
    for path, allowed in paths.items():
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            allowed &= EXECUTE | WRITE_FILE | READ_FILE | (TRUNCATE if version >= 3 else 0)
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = PathBeneath(allowed, descriptor)
        call(ADD_RULE, ruleset, ctypes.c_uint32(PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
        os.close(descriptor)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    call(RESTRICT_SELF, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def limit_resources(seconds: float, memory: int) -> None:
    """CPU seconds, MB of address space, and few files, processes and bytes a file."""
    cpu = max(1, math.ceil(seconds))
    limits = {"CPU": cpu, "AS": memory * 2**20, "FSIZE": FILE_BYTES, "NOFILE": OPEN_FILES, "NPROC": 0, "CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = value + 1 if name == "CPU" else value
            try:
                resource.setrlimit(kind, (value, hard))
            except (ValueError, OSError):  # macOS has no limit of the address space
                continue


def main() -> None:
    """Run the program that stdin tells of."""
    told = json.load(sys.stdin)
    program, token = told["program"], told["token"]
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir(told["folder"])
    limit_resources(told["seconds"], told["memory"])
    if told["files"]:
        restrict_files(told["folder"])

    def tell(said: str) -> None:
        os.write(out, f"{token} {said}\n".encode("utf-8", "replace"))
        os._exit(0)

    signal.signal(signal.SIGXCPU, lambda *_: tell(f"used more than {told['seconds']:g} s of CPU time"))
    said = ""
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # whatever it raises, SystemExit too
        line = (str(error).splitlines() or [""])[0][:200]
        said = f"{type(error).__name__}: {line}".rstrip(": ")
    tell(said)


if __name__ == "__main__":
    main()
