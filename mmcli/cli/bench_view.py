"""What `mmcli bench` prints: figures, a table of engines, the operators of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from mmcli.errors import MmcliError

if TYPE_CHECKING:
    from mmcli.export.compare import Contestant, Measured, Workload
    from mmcli.generate.profile import Operator

UNITS = {
    "tokens_per_second": lambda value: f"{value:,.1f}",
    "slowest": lambda value: f"{value:,.1f}",
    "fastest": lambda value: f"{value:,.1f}",
    "first_token_seconds": lambda value: f"{value * 1000:.1f} ms",
    "step_seconds": lambda value: f"{value * 1000:.1f} ms",
    "load_seconds": lambda value: f"{value:.2f} s",
    "peak_memory_bytes": lambda value: f"{value / 1e6:,.0f} MB",
    "loss": lambda value: f"{value:.3f}",
}
NAMES = {"first_token_seconds": "first token", "step_seconds": "step", "load_seconds": "load"}
OPERATORS = 8  # kinds that are shown; the others are one line


def show(
    result: dict[str, Any], as_json: bool, operators: Sequence[Operator] | None = None, of: str = "a token"
) -> None:
    """One measurement, and the operators of it if they were asked for.

    Args:
        of: what the times of the operators are for: "a token" or "a prompt".
    """
    from mmcli.cli.console import print_json

    if as_json:
        print_json(result if operators is None else {**result, "operators": [asdict(each) for each in operators]})
        return
    for key, value in result.items():
        if value is not None:
            name = NAMES.get(key, key.removesuffix("_bytes").replace("_", " "))
            typer.echo(f"{name:<18} {UNITS[key](value) if key in UNITS else value}")
    if operators is not None:
        typer.echo("")
        _print_operators(operators, of)


def to_document(
    label: str, work: Workload, measured: Mapping[Contestant, Measured], refused: Mapping[Contestant, MmcliError]
) -> dict[str, Any]:
    """A comparison as `--json` prints it."""
    engines: list[dict[str, Any]] = []
    for each, found in measured.items():
        facts = {"engine": each.engine, "dtype": each.dtype, "path": str(each.path), "size_bytes": found.size_bytes}
        facts |= {"perplexity": found.perplexity, **asdict(found.speed)}
        engines.append({**facts, "operators": [asdict(one) for one in found.operators]} if work.profile else facts)
    errors = [{"engine": each.engine, "dtype": each.dtype, "error": error.what} for each, error in refused.items()]
    asked = {name: value for name, value in asdict(work).items() if name != "profile"}
    return {"bench": "compare", "model": label, **asked, "engines": engines, "left_out": errors}


def print_comparison(label: str, work: Workload, measured: Mapping[Contestant, Measured]) -> None:
    """A table, an engine a line; below it the operators of each if they were asked for."""
    threads = f"{work.threads} thread{'s' if work.threads > 1 else ''}"
    typer.echo(f"{label}: {work.prompt_tokens} + {work.new_tokens} tokens, {threads}\n")
    typer.echo(f"{'':<15}{'size':>10}{'perplexity':>12}{'tokens/s':>11}{'first token':>13}{'memory':>11}{'load':>8}")
    for each, found in measured.items():
        speed = found.speed
        memory = "" if speed.peak_memory_bytes is None else f"{speed.peak_memory_bytes / 1e6:,.0f} MB"
        typer.echo(
            f"{each.name:<15}{f'{found.size_bytes / 1e6:,.1f} MB':>10}{found.perplexity:>12.4g}"
            f"{speed.tokens_per_second:>11,.1f}{f'{speed.first_token_seconds * 1000:.1f} ms':>13}"
            f"{memory:>11}{f'{speed.load_seconds:.2f} s':>8}"
        )
    for each, found in measured.items():
        if found.operators:
            typer.echo(f"\n{each.name}")
            _print_operators(found.operators, "a token")


def _print_operators(operators: Sequence[Operator], of: str) -> None:
    """The dearest kinds, and all others as one."""
    shown, others = operators[:OPERATORS], operators[OPERATORS:]
    rows = [(each.name, each.share, each.seconds, each.calls) for each in shown]
    if others:
        sums = (sum(getattr(each, what) for each in others) for what in ("share", "seconds", "calls"))
        share, seconds, calls = sums
        rows.append((f"{len(others)} others", share, seconds, calls))
    typer.echo(f"{'operator':<44}{'share':>8}{f'time {of}':>16}{'calls':>8}")
    for name, share, seconds, calls in rows:
        typer.echo(f"{name[:43]:<44}{share:>8.1%}{f'{seconds * 1000:.3f} ms':>16}{calls:>8,.0f}")
