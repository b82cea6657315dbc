"""A process that has imported everything and forks one child a command line: a trial costs no start of Python.

Requests and answers are JSON lines on stdin and stdout. The child runs `mmcli.cli.main` as the installed program does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attack.faults

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int  # negative: killed by that signal; TIMEOUT: it did not end
    out: str
    err: str
    seconds: float
    events: tuple[str, ...] = ()


TIMEOUT = -999


class Server:
    """The parent's end. Use it in a `with`."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HERE.parent), *(each or os.getcwd() for each in sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "attack.server"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def run(self, folder: Path, *argv: str, fault: dict[str, Any] | None = None, timeout: float = 60.0) -> Done:
        """Run `mmcli argv` in `folder`/work, with a fault (see `attack.faults.install`) if one is given."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"folder": str(folder), "argv": argv, "fault": fault, "timeout": timeout}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        out, err = (_text(folder / name) for name in ("stdout", "stderr"))
        events = tuple(json.loads(_text(folder / "events.json") or "[]")) if fault else ()
        return Done(answer["code"], out, err, answer["seconds"], events)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _import_everything() -> None:
    import onnxruntime  # noqa: F401
    import torch._inductor  # noqa: F401  what `torch.use_deterministic_algorithms` imports

    import mmcli.cli.chat
    import mmcli.cli.export
    import mmcli.cli.resume
    import mmcli.cli.training
    import mmcli.export.proof
    import mmcli.generate.onnx_engine
    import mmcli.stages.dpo
    import mmcli.stages.pretrain
    import mmcli.stages.sft
    import mmcli.train.loop

    # A second of each training, for a figure (MFU) that trials do not look at.
    mmcli.train.loop.measure_peak_flops = lambda accelerator: 1e9
    # What a process wrote outlives it without; only a loss of power would show the difference.
    os.fsync = lambda descriptor: None


def _child(request: dict[str, Any]) -> None:
    folder = request["folder"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in attack.faults.SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    work = os.path.join(folder, "work")
    os.chdir(work)
    sys.argv = ["mmcli", *request["argv"]]
    from mmcli.cli import main

    events: Any = None
    code: Any = 1
    try:
        if request["fault"]:
            events = attack.faults.install(request["fault"], work)
        main(request["argv"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
    if events is not None:
        events.at = 0
        attack.faults.write_events(events, f"{folder}/events.json")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _wait(pid: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return TIMEOUT


def serve() -> None:
    """Answer requests until stdin ends."""
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _child(request)
        code = _wait(pid, request["timeout"])
        print(json.dumps({"code": code, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    serve()
