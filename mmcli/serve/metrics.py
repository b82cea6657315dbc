"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Durations in buckets; one thread writes."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[sum(seconds > bound for bound in BOUNDS)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Cumulated buckets, sum and count."""
        cumulated = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            cumulated += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {cumulated}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {cumulated}"


@dataclass
class ModelMetrics:
    """Counters of one model; its scheduler's thread writes them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    steps: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    reply: Histogram = field(default_factory=Histogram)


COUNTERS = {
    "prompt_tokens": ("mmcli_prompt_tokens_total", "Tokens of the prompts of finished replies."),
    "cached_tokens": ("mmcli_cached_prompt_tokens_total", "Those of them that a slot already held."),
    "completion_tokens": ("mmcli_completion_tokens_total", "Tokens written."),
    "cancelled": ("mmcli_cancelled_total", "Replies whose client went away."),
    "steps": ("mmcli_decode_steps_total", "Steps of the engine, each a token of every reply under way."),
}
HISTOGRAMS = {
    "first_token": ("mmcli_first_token_seconds", "From the request to the first token."),
    "reply": ("mmcli_reply_seconds", "From the request to the end of the reply."),
}
GAUGES = {
    "slots": ("mmcli_slots", "Replies that can be written at once."),
    "busy": ("mmcli_slots_busy", "Replies under way."),
    "waiting": ("mmcli_queue_length", "Replies that wait for a slot."),
}


@dataclass
class Requests:
    """Answers by path and status; the event loop writes them."""

    counts: dict[tuple[str, int], int] = field(default_factory=dict)

    def count(self, path: str, status: int) -> None:
        """Count one answer."""
        self.counts[path, status] = self.counts.get((path, status), 0) + 1

    def lines(self) -> Iterator[str]:
        """One line for each path and status."""
        yield from _head("mmcli_requests_total", "Answers by path and status.", "counter")
        for (path, status), count in sorted(self.counts.items()):
            yield f'mmcli_requests_total{{path="{_escaped(path)}",status="{status}"}} {count}'


def exposition(requests: Requests, models: Mapping[str, ModelMetrics], gauges: Mapping[str, Mapping[str, int]]) -> str:
    """The whole page.

    Args:
        gauges: of each model, a value for each of `GAUGES`.
    """
    lines = list(requests.lines())
    for field_name, (name, text) in COUNTERS.items():
        lines += _head(name, text, "counter")
        lines += [f"{name}{{{_label(model)}}} {getattr(each, field_name)}" for model, each in models.items()]
    for field_name, (name, text) in GAUGES.items():
        lines += _head(name, text, "gauge")
        lines += [f"{name}{{{_label(model)}}} {values[field_name]}" for model, values in gauges.items()]
    for field_name, (name, text) in HISTOGRAMS.items():
        lines += _head(name, text, "histogram")
        for model, each in models.items():
            lines += getattr(each, field_name).lines(name, _label(model))
    return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _label(model: str) -> str:
    return f'model="{_escaped(model)}"'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
