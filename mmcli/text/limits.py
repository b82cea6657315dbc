"""Limits of time and memory for one rendering of a chat template."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jinja2

from mmcli.text.marked import real
from mmcli.text.opaque import Texts

MAX_STEPS = 250_000  # turns of loops, calls of macros, elements that filters go through, thousands of characters made
MAX_LENGTH = 50_000_000  # characters of a text, elements of a list
MAX_WIDTH = 1_000  # of padding and indentation
MAX_BITS = 4_096  # of a whole number
CLOCK_AFTER = 1_000  # steps that take no time worth looking at the clock for
MAX_SECONDS = 10.0  # of one rendering; the longest real ones take some hundredths
WIDE = re.compile(r"[0-9]{5,}|\*")  # a width in a format


class TooMuch(jinja2.TemplateRuntimeError):
    """A template beyond the limits."""


@dataclass
class Rendering:
    """One rendering under way."""

    texts: Texts
    steps: int = 0
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def charge(self, steps: int) -> None:
        """Count `steps`.

        Raises:
            TooMuch: they are too many, or the time is over.
        """
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TooMuch(f"it takes more than {MAX_STEPS:,} steps")
        if self.steps > CLOCK_AFTER and time.monotonic() > self.deadline:
            raise TooMuch(f"it takes more than {MAX_SECONDS:g} seconds")


# The template never holds the rendering itself, so it cannot reach the texts behind it.
rendering_now: ContextVar[Rendering] = ContextVar("rendering_now")


def count_made(length: int) -> None:
    """Count a text or list of this length that is about to be made, or refuse it."""
    if length > MAX_LENGTH:
        raise TooMuch(f"it makes a text or list of more than {MAX_LENGTH:,} elements")
    if length >= 1024:
        rendering_now.get().charge(length >> 10)


def length_of(value: Any) -> int:
    """Characters or elements, as they lie in memory; 0 of what is neither text nor list."""
    if isinstance(value, str):
        return str.__len__(value)
    return len(value) if isinstance(value, list | tuple | dict | range) else 0


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Count what replacing `old` by `new` makes, or refuse it."""
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        found = real(text).count(real(old))
        count_made(len(real(text)) + found * len(real(new)))


def check_join(separator: str, values: list[Any]) -> None:
    """Count what joining `values` makes, or refuse it."""
    rendering_now.get().charge(len(values))
    count_made(length_of(separator) * len(values) + sum(length_of(value) for value in values))


def check_widths(values: Iterable[Any]) -> None:
    """Refuse to pad or indent by much: by a number of characters, or with a text as long."""
    for value in values:
        if (isinstance(value, int) and abs(value) > MAX_WIDTH) or length_of(value) > MAX_WIDTH:
            raise TooMuch(f"it pads a text to more than {MAX_WIDTH:,} characters")


def check_format(text: Any) -> None:
    """Refuse a format that pads by much, or by a number that is not in it."""
    if isinstance(text, str) and WIDE.search(text):
        raise TooMuch("it formats a text with a width")
