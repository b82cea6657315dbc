"""Progress in words: amounts, and one training step on a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcli.stage import Metric

LINE_COLUMNS = 80
# Control characters in names and texts must not reach the terminal: they are spelled out.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def amount(number: float) -> str:
    """A count with an SI suffix: 950, 12.3k, 4.5M, 1.2G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:.0f}"


def step_line(values: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    """One training step on a line: the metrics, the speed, and what of the rest fits into 80 columns.

    The rest is, in this order, each group of metrics and the MFU.
    """
    from mmcli.train.config import duration

    steps = values.get("steps")
    parts = [f"step {values['step']}/{steps}" if steps else f"step {values['step']}"]
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        if values.get(metric.name) is not None:
            shown = metric.text(values[metric.name])
            groups.setdefault(metric.group, []).append(shown)
    parts += groups.pop("", [])
    if values.get("tokens_per_second"):
        parts.append(f"{amount(values['tokens_per_second'])} tok/s")
    ending = [f"eta {duration(values['eta_seconds'])}"] if values.get("eta_seconds") is not None else []
    rest = [" ".join(group) for group in groups.values()]
    if values.get("mfu"):
        rest.append(f"mfu {values['mfu']:.0%}")
    for part in rest:
        if len("  ".join([*parts, part, *ending])) <= LINE_COLUMNS:
            parts.append(part)
    return "  ".join([*parts, *ending])


def is_milestone(values: Mapping[str, Any], metrics: Sequence[Metric]) -> bool:
    """True of a step whose line is kept: one with a value on held-out data, and the last."""
    evaluated = any(metric.held_out and values.get(metric.name) is not None for metric in metrics)
    return evaluated or values.get("step") == values.get("steps")


def sample_text(prompt: str, text: str) -> str:
    """A prompt and what the model wrote after it, told apart."""
    return f"{prompt.rstrip()} | {text.lstrip()}"


def one_line(text: str, width: int = 200) -> str:
    """A text on one line, truncated to `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def escape_control(text: str) -> str:
    """`text` with what could steer a terminal spelled out, as in `\\x1b`."""
    return text.translate(_CONTROL) if not text.isprintable() else text
