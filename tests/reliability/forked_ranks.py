"""Runs command lines as several ranks, forked from this one process, which has imported what takes long.

Each line on stdin is JSON: {"argv": [...], "world": 2, "part": null}, `part` being the bytes that are encoded together;
each answer on stdout is {"codes": [...], "err": "..."}.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile

from mmcli.cli import run
from mmcli.data.encode import parts
from mmcli.stages import tokens


def main() -> None:
    for name in ("torch.distributed.rendezvous", *(f"mmcli.stages.{name}" for name in ("pretrain", "sft", "dpo"))):
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as err:
            children = fork(asked["argv"], asked["world"], asked["part"] or parts.PART, err.fileno())
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            err.seek(0)
            print(json.dumps({"codes": codes, "err": err.read().decode()}), flush=True)


def fork(argv: list[str], world: int, part: int, err: int) -> list[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(world):
        if pid := os.fork():
            children.append(pid)
            continue
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(err, 1)
        os.dup2(err, 2)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = ["mmcli", *argv]
        parts.PART = tokens.PART = part
        code = 1
        try:
            code = run(argv)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return children


if __name__ == "__main__":
    main()
