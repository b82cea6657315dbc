"""metrics.jsonl: one flat JSON line a step, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mmcli.files import write_atomic


class MetricsFile:
    """Appends lines; every line is flushed, so a killed run keeps what it said."""

    def __init__(self, path: Path | None, *, from_step: int) -> None:
        """Keep the lines of steps before `from_step` and go on after them.

        Args:
            path: None: another process writes the file, and this one nothing.
        """
        self._file: IO[str] | None = None
        self._failing = False
        if path is None:
            return
        kept = []
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if json.loads(line)["step"] < from_step and line.endswith(b"\n"):
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue
        write_atomic(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  held open for the whole training

    def write(self, values: Mapping[str, Any]) -> str | None:
        """Append a line; what is not finite is null. Why that failed, the first time; it stays in the file's buffer."""
        if self._file is None:
            return None
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in values.items()}
        try:
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        except OSError as error:
            known, self._failing = self._failing, True
            return None if known else str(error.strerror)
        self._failing = False
        return None

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
