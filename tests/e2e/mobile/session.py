"""An ONNX Runtime session for onnxruntime.kt: big-endian numbers over stdin and stdout. Argument: the graph."""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import numpy as np
import onnxruntime


def read(form: str) -> Any:
    data = sys.stdin.buffer.read(struct.calcsize(form))
    if not data:
        sys.exit()
    return struct.unpack(form, data)[0]


def text() -> str:
    return sys.stdin.buffer.read(read(">H")).decode()


def tensor() -> np.ndarray:
    is_long = read(">?")
    shape = [read(">q") for _ in range(read(">i"))]
    kind = np.dtype(">i8" if is_long else ">f4")
    data = sys.stdin.buffer.read(math.prod(shape) * kind.itemsize)
    return np.frombuffer(data, kind).astype(np.int64 if is_long else np.float32).reshape(shape)


def write(form: str, *values: Any) -> None:
    sys.stdout.buffer.write(struct.pack(form, *values))


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
write(">i", len(session.get_inputs()))
for each in session.get_inputs():
    name = each.name.encode()
    write(f">H{len(name)}si{len(each.shape)}q", len(name), name, len(each.shape), *(
        size if isinstance(size, int) else -1 for size in each.shape
    ))  # fmt: skip
sys.stdout.buffer.flush()
while True:
    feed = {text(): tensor() for _ in range(read(">i"))}
    names = [text() for _ in range(read(">i"))]
    for found in session.run(names, feed):
        write(f">i{found.ndim}q", found.ndim, *found.shape)
        sys.stdout.buffer.write(found.astype(">f4").tobytes())
    sys.stdout.buffer.flush()
