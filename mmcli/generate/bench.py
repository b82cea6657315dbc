"""The speed of an engine: tokens per second, time to first token, load time, memory. No torch here."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcli.errors import UserError
from mmcli.generate.engine import Engine


@dataclass(frozen=True)
class Speed:
    """The measured speed. Every time is a median over `repeats`, after one run that does not count."""

    tokens_per_second: float
    slowest: float  # tokens per second of the slowest and the fastest repeat
    fastest: float
    first_token_seconds: float  # reading the prompt
    load_seconds: float  # from the folder to an engine that can answer
    peak_memory_bytes: int | None  # of the whole process since its start; None where the system does not say
    repeats: int


def load_timed(load: Callable[[], Engine]) -> tuple[Engine, float]:
    """(engine, seconds)."""
    start = time.perf_counter()
    engine = load()
    return engine, time.perf_counter() - start


def bench_decode(
    engine: Engine, *, prompt_tokens: int, new_tokens: int, repeats: int = 5, load_seconds: float = 0.0
) -> Speed:
    """Greedy decoding of `new_tokens` after a prompt of random ids; the prompt does not count into tokens a second.

    Raises:
        UserError: no tokens, no repeats, or more than the context holds.
    """
    _check(engine, prompt_tokens, repeats, new_tokens=new_tokens)
    prompt = random_ids(engine.vocab_size, prompt_tokens)
    firsts, rates = [], []
    for _ in range(repeats + 1):
        engine.truncate(0, 0)
        start = time.perf_counter()
        token = int(engine.prefill(0, prompt).argmax())
        first = time.perf_counter()
        for _ in range(new_tokens):
            token = int(engine.decode([0], [token])[0].argmax())
        firsts.append(first - start)
        rates.append(new_tokens / (time.perf_counter() - first))
    return summarize(rates[1:], firsts[1:], load_seconds)


def bench_prefill(engine: Engine, *, prompt_tokens: int, repeats: int = 5, load_seconds: float = 0.0) -> Speed:
    """Reading a prompt of random ids.

    Raises:
        UserError: no tokens, no repeats, or more than the context holds.
    """
    _check(engine, prompt_tokens, repeats, new_tokens=0)
    prompt = random_ids(engine.vocab_size, prompt_tokens)
    seconds = []
    for _ in range(repeats + 1):
        engine.truncate(0, 0)
        start = time.perf_counter()
        engine.prefill(0, prompt)
        seconds.append(time.perf_counter() - start)
    return summarize([prompt_tokens / each for each in seconds[1:]], seconds[1:], load_seconds)


def peak_memory_bytes() -> int | None:
    """The most memory that this process ever held (resident set), None where the system does not say."""
    try:  # of this program alone: getrusage counts that of the process which started it, too
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def check_repeats(repeats: int) -> None:
    """Raise UserError where there is nothing to take a median of."""
    if repeats < 1:
        raise UserError(f"repeats = {repeats} measures nothing", "give 1 or more")


def _check(engine: Engine, prompt_tokens: int, repeats: int, *, new_tokens: int) -> None:
    check_repeats(repeats)
    if prompt_tokens < 1 or new_tokens < 0:
        raise UserError(f"{prompt_tokens} prompt tokens and {new_tokens} new ones measure nothing", "give 1 or more")
    if prompt_tokens + new_tokens > engine.max_len:
        what = f"{prompt_tokens} prompt tokens and {new_tokens} new ones, the context holds {engine.max_len:,}"
        raise UserError(what, "give fewer")


def random_ids(vocab_size: int, count: int) -> list[int]:
    """So many ids of a vocabulary, the same each time."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, count).tolist()
    return ids


def summarize(rates: list[float], firsts: list[float], load_seconds: float) -> Speed:
    """The speed from the tokens per second and the seconds to the first token of each repeat."""
    return Speed(
        tokens_per_second=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        first_token_seconds=statistics.median(firsts),
        load_seconds=load_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        repeats=len(rates),
    )
