"""The memory that this process holds, as its live screen shows it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mmcli.cli.progress import amount


def memory_in_use() -> str:
    """`memory 812MB, peak 1.1GB`: of the GPU where torch uses one, else of the process; empty where nobody tells."""
    torch: Any = sys.modules.get("torch")  # not loaded: then it holds no GPU's memory either
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return _words("gpu", torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    from mmcli.generate.bench import peak_memory_bytes

    return _words("memory", _resident_bytes(), peak_memory_bytes())


def _words(label: str, now: int | None, peak: int | None) -> str:
    if now is not None and peak is not None:
        peak = max(now, peak)  # they are read one after the other
    parts = [f"{amount(now)}B" if now is not None else "", f"peak {amount(peak)}B" if peak is not None else ""]
    return f"{label} {', '.join(filter(None, parts))}" if any(parts) else ""


def _resident_bytes() -> int | None:
    """Resident set size; None elsewhere than on Linux."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
