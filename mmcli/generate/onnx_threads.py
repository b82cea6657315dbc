"""The number of threads with which an export decodes quickest on this machine: measured once, then remembered.

More threads are not always quicker: a small model's matrices are done before other threads have begun. What was found
is kept in the user's cache, by machine and size of the graph, so that a model folder may be read-only and a copy of it
is known. No torch here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from mmcli.errors import MmcliError
from mmcli.files import atomic_file
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_session import GRAPH_FILE
from mmcli.machine import cpu_name
from mmcli.threads import usable_threads

FILE = "onnx-threads.json"
TOKENS = 12  # decoded with each number of threads; the quickest counts
GAIN = 1.05  # how much quicker more threads must be


def choose_threads(folder: Path, load: Callable[[int], Engine]) -> int | None:
    """Threads for the export in `folder`, measured the first time; None where OMP_NUM_THREADS says how many.

    Args:
        load: opens it with so many threads.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return None
    most = usable_threads()
    if most == 1:
        return 1
    key = _key(folder, most)
    known = _read().get(key)
    if type(known) is int and 1 <= known <= most:  # not True
        return known
    found = _quickest(load, most)
    _remember(key, found)
    return found


def _quickest(load: Callable[[int], Engine], most: int) -> int:
    """The number of threads that decode quickest, the fewest of those that are about as quick."""
    best, best_seconds = 1, float("inf")
    for threads in sorted({1, most // 2, most}):
        seconds = _token_seconds(load(threads))
        if seconds * GAIN < best_seconds:
            best, best_seconds = threads, seconds
    return best


def _token_seconds(engine: Engine) -> float:
    seconds = []
    for _ in range(min(TOKENS, engine.max_len)):
        start = time.perf_counter()
        engine.decode([0], [0])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _key(folder: Path, most: int) -> str:
    size = sum(each.stat().st_size for each in folder.glob(GRAPH_FILE + "*"))
    return f"{cpu_name()}, {most} cores, onnxruntime {onnxruntime.__version__}, {size} bytes"


def _place() -> Path | None:
    """The file; None where the system names no home."""
    folder = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return (Path(folder) if folder else Path.home() / ".cache") / "mmcli" / FILE
    except RuntimeError:
        return None


def _read() -> dict[str, object]:
    """What is remembered; nothing if the file is missing or damaged."""
    place = _place()
    try:
        found = json.loads(place.read_text(encoding="utf-8")) if place is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, threads: int) -> None:
    """Add to the file; where it cannot be written, it is measured again next time."""
    place = _place()
    if place is None:
        return
    try:
        with atomic_file(place) as beside:
            beside.write_text(json.dumps({**_read(), key: threads}, indent=2) + "\n", encoding="utf-8")
    except (OSError, MmcliError):
        return
