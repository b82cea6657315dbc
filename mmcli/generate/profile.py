"""Where the time of an engine goes, by kind of operator: the profilers of ONNX Runtime and of torch. No torch here
before a torch engine is profiled.

A profiler slows what it watches, so a profile tells shares; `bench.py` tells times.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcli.errors import UserError
from mmcli.generate.bench import random_ids
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_session import PREFILL_CHUNK, SessionEngine

PROFILED_TOKENS = 64  # most tokens that are decoded for a profile


@dataclass(frozen=True)
class Operator:
    """All calls of one kind of operator."""

    name: str
    share: float  # of the time of all operators
    seconds: float  # a pass: a token decoded, or a whole prompt read
    calls: float  # a pass


def profile_decode(
    engine: Engine,
    open_profiled: Callable[[Path], SessionEngine],
    *,
    prompt_tokens: int,
    new_tokens: int,
) -> list[Operator]:
    """The operators of decoding a token after a prompt, the dearest first.

    Args:
        engine: of torch, or of ONNX Runtime.
        open_profiled: opens the latter once more, its session writing a profile into files of that prefix.
    """
    tokens = min(new_tokens, PROFILED_TOKENS)
    ids, following = random_ids(engine.vocab_size, prompt_tokens), random_ids(engine.vocab_size, tokens)

    def decode(used: Engine) -> None:
        for id in following:
            used.decode([0], [id])

    def prepare(used: Engine) -> None:
        used.truncate(0, 0)
        used.prefill(0, ids)

    return _profile(engine, open_profiled, prepare, decode, runs=tokens, passes=tokens)


def profile_prefill(
    engine: Engine, open_profiled: Callable[[Path], SessionEngine], *, prompt_tokens: int
) -> list[Operator]:
    """The operators of reading a prompt, the dearest first; see `profile_decode`."""
    ids = random_ids(engine.vocab_size, prompt_tokens)

    def read(used: Engine) -> None:
        used.truncate(0, 0)
        used.prefill(0, ids)

    return _profile(engine, open_profiled, read, read, runs=-(-prompt_tokens // PREFILL_CHUNK), passes=1)


def _profile(
    engine: Engine,
    open_profiled: Callable[[Path], SessionEngine],
    prepare: Callable[[Engine], None],
    work: Callable[[Engine], None],
    *,
    runs: int,
    passes: int,
) -> list[Operator]:
    """The operators of `work`, which runs a session `runs` times and counts as `passes`."""
    if not isinstance(engine, SessionEngine):
        prepare(engine)
        return _of_torch(engine, work, passes)
    with tempfile.TemporaryDirectory(prefix="mmcli-profile-") as place:
        profiled = open_profiled(Path(place) / "ort")
        prepare(profiled)
        work(profiled)
        events = json.loads(profiled.end_profile().read_text(encoding="utf-8"))
    begins = sorted(each["ts"] for each in events if each.get("name") == "model_run")[-runs]
    nodes = (each for each in events if each.get("cat") == "Node" and each["ts"] >= begins)
    return _summed(
        ((each["args"]["op_name"], each["dur"] / 1e6) for each in nodes if each["name"].endswith("_kernel_time")),
        passes,
    )


def _of_torch(engine: Any, work: Callable[[Engine], None], passes: int) -> list[Operator]:
    from torch.profiler import ProfilerActivity, profile

    on_gpu = engine.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        work(engine)
    times = [
        (each.key, (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / 1e6, each.count)
        for each in found.key_averages()
    ]
    return _shares({name: (seconds, count) for name, seconds, count in times}, passes)


def _summed(calls: Iterable[tuple[str, float]], passes: int) -> list[Operator]:
    totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for name, seconds in calls:
        total, count = totals[name]
        totals[name] = total + seconds, count + 1
    return _shares(totals, passes)


def _shares(totals: Mapping[str, tuple[float, int]], passes: int) -> list[Operator]:
    """The operators by falling time, from (seconds, calls) of each."""
    whole = sum(seconds for seconds, _ in totals.values())
    if not whole > 0:
        raise UserError("the profiler saw no operator", "profile on the CPU: --device cpu")
    found = [Operator(name, seconds / whole, seconds / passes, n / passes) for name, (seconds, n) in totals.items()]
    return sorted(found, key=lambda each: -each.seconds)
