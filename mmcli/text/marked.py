"""Strings in a chat template's hands, in which marks stand for a person's texts.

A template may strip, cut, split, search and compare such a string as if the texts stood in it. What it gets is again
marks: a part of a text is a mark of its own, so it stays text wherever the template puts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol, SupportsIndex

# Two private-use characters around a number. No text reaches the rendering, so nothing else can look like a mark.
OPEN, CLOSE = "\ue000", "\ue001"
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Registry(Protocol):
    """The texts behind the marks."""

    texts: list[str]
    inspected: bool  # a template found something in a text, or did what is not followed here

    def part(self, index: int, start: int, end: int) -> str: ...
    def made(self, text: str, sources: tuple[int, ...]) -> str: ...
    def wrap(self, value: str) -> str: ...
    def reveal(self, value: str) -> str: ...


class Marked(str):
    """A string with at least one mark. Its own characters hold the marks; its methods see the texts behind them.

    What is not overridden here sees the marks, so it gives another result than it would with the texts: the sandbox
    notes that (`inspected`), and the rendering is then compared with one of the real texts.
    """

    __slots__ = ("_registry",)
    _registry: Registry

    def __new__(cls, value: str, registry: Registry) -> Marked:
        self = super().__new__(cls, value)
        self._registry = registry
        return self

    # What it reads as

    def _real(self) -> str:
        return self._registry.reveal(str.__str__(self))

    def _note(self, found: bool) -> bool:
        if found:
            self._registry.inspected = True
        return found

    def _pieces(self) -> Iterator[tuple[str, int | None]]:
        """(characters, None) of the template and (text, number of its mark) of a person, in order."""
        for at, piece in enumerate(MARK.split(str.__str__(self))):
            if at % 2:
                yield self._registry.texts[int(piece)], int(piece)
            elif piece:
                yield piece, None

    def _cut(self, start: int, end: int, *, note: bool = True) -> str:
        """Characters `start` to `end` of what it reads as."""
        if note:
            self._registry.inspected = True
        parts, at = [], 0
        for text, mark in self._pieces():
            low, high = max(start - at, 0), min(end - at, len(text))
            if low < high:
                parts.append(text[low:high] if mark is None else self._registry.part(mark, low, high))
            at += len(text)
        return self._registry.wrap("".join(parts))

    def _sources(self, start: int, end: int) -> tuple[int, ...]:
        """The marks, of parts where needed, that characters `start` to `end` come from."""
        return tuple(int(number) for number in MARK.findall(str.__str__(self._cut(start, end))))

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True  # no text behind a mark is empty

    def __len__(self) -> int:
        self._registry.inspected = True
        return len(self._real())

    def __hash__(self) -> int:
        return hash(self._real())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, str) and self._note(self._real() == real(other)))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: str) -> bool:
        return self._note(True) and self._real() < real(other)

    def __le__(self, other: str) -> bool:
        return self._note(True) and self._real() <= real(other)

    def __gt__(self, other: str) -> bool:
        return self._note(True) and self._real() > real(other)

    def __ge__(self, other: str) -> bool:
        return self._note(True) and self._real() >= real(other)

    def __contains__(self, part: object) -> bool:
        return self._note(real(part) in self._real())

    def startswith(self, prefix: Any, *bounds: Any) -> bool:
        return self._note(self._real().startswith(_reals(prefix), *bounds))

    def endswith(self, suffix: Any, *bounds: Any) -> bool:
        return self._note(self._real().endswith(_reals(suffix), *bounds))

    def find(self, part: str, *bounds: Any) -> int:
        found = self._real().find(real(part), *bounds)
        self._note(found >= 0)
        return found

    def rfind(self, part: str, *bounds: Any) -> int:
        found = self._real().rfind(real(part), *bounds)
        self._note(found >= 0)
        return found

    def count(self, part: str, *bounds: Any) -> int:
        found = self._real().count(real(part), *bounds)
        self._note(found > 0)
        return found

    def islower(self) -> bool:
        return self._note(True) and self._real().islower()

    def isupper(self) -> bool:
        return self._note(True) and self._real().isupper()

    def isdigit(self) -> bool:
        return self._note(self._real().isdigit())

    def isspace(self) -> bool:
        return self._note(self._real().isspace())

    # What is made of it

    def __add__(self, other: str) -> str:
        return Marked(str.__add__(self, other), self._registry) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return Marked(str.__add__(other, self), self._registry) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = self._real()
        places = range(len(text))[key]
        if isinstance(places, int):
            return self._cut(places, places + 1)
        if places.step == 1:
            return self._cut(places.start, places.stop)
        return self._registry.wrap("".join(self._cut(place, place + 1) for place in places))

    def __iter__(self) -> Iterator[str]:
        return (self._cut(place, place + 1) for place in range(len(self._real())))

    def strip(self, chars: str | None = None, /) -> str:
        return self._strip(chars, left=True, right=True)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._strip(chars, left=True, right=False)

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._strip(chars, left=False, right=True)

    def _strip(self, chars: str | None, *, left: bool, right: bool) -> str:
        text, chars = self._real(), None if chars is None else real(chars)
        start = len(text) - len(text.lstrip(chars)) if left else 0
        end = len(text.rstrip(chars)) if right else len(text)
        # Not noted: nearly every template strips, and what that gives is plain to follow.
        return self if (start, end) == (0, len(text)) else self._cut(start, max(start, end), note=False)

    def removeprefix(self, prefix: str, /) -> str:
        text = self._real()
        left = len(text.removeprefix(real(prefix)))
        return self if left == len(text) else self._cut(len(text) - left, len(text))

    def removesuffix(self, suffix: str, /) -> str:
        text = self._real()
        left = len(text.removesuffix(real(suffix)))
        return self if left == len(text) else self._cut(0, left)

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        sep = None if sep is None else real(sep)
        return self._cuts(self._real().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        sep = None if sep is None else real(sep)
        return self._cuts(self._real().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._real().splitlines(True)
        kept = whole if keepends else self._real().splitlines()
        if kept == [self._real()]:
            return [self]
        ends = [sum(map(len, whole[: number + 1])) for number in range(len(whole))]
        starts = [0, *ends]
        return [self._cut(start, start + len(line)) for start, line in zip(starts, kept, strict=False)]

    def _cuts(self, parts: list[str], sep: str | None) -> list[str]:
        """`parts` of what it reads as, one after another, with `sep` (None: blanks) between them."""
        text, at = self._real(), 0
        if parts == [text]:
            return [self]
        cuts = []
        for part in parts:
            start = at if sep is not None else text.index(part, at)
            cuts.append(self._cut(start, start + len(part)))
            at = start + len(part) + len(sep or "")
        return cuts

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._partition(self._real().partition(real(sep)), (self, "", ""))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._partition(self._real().rpartition(real(sep)), ("", "", self))

    def _partition(self, parts: tuple[str, str, str], missing: tuple[str, str, str]) -> tuple[str, str, str]:
        before, sep, after = map(len, parts)
        if not sep:
            return missing
        whole = before + sep + after
        return self._cut(0, before), self._cut(before, before + sep), self._cut(before + sep, whole)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """What replaces a part of a text is text too: a template's words cannot become control tokens through it."""
        text, old = self._real(), real(old)
        replaced = text.replace(old, real(new), count)
        if old not in text or not int(count):
            return self
        if not old:
            return self._registry.wrap(self._registry.made(replaced, self._sources(0, len(text))))
        parts, at, left = [], 0, int(count)
        while left and (found := text.find(old, at)) >= 0:
            parts.append(self._cut(at, found))
            sources = self._sources(found, found + len(old))
            parts.append(self._registry.made(real(new), sources) if sources else new)
            at, left = found + len(old), left - 1
        return self._registry.wrap("".join([*parts, self._cut(at, len(text))]))

    def upper(self) -> str:
        return self._change(str.upper)

    def lower(self) -> str:
        return self._change(str.lower)

    def capitalize(self) -> str:
        return self._change(str.capitalize)

    def title(self) -> str:
        return self._change(str.title)

    def _change(self, function: Any) -> str:
        """`function` of every piece; where that is not `function` of the whole, the rendering will differ."""
        self._registry.inspected = True
        parts = (
            function(text) if mark is None else self._registry.made(function(text), (mark,))
            for text, mark in self._pieces()
        )
        return self._registry.wrap("".join(parts))


def real(value: Any) -> Any:
    """What a string reads as, texts in place of their marks; another value as it is."""
    return value._real() if isinstance(value, Marked) else value


def _reals(value: Any) -> Any:
    return tuple(map(real, value)) if isinstance(value, tuple) else real(value)
