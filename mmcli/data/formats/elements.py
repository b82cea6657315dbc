"""The elements of a JSON array that is too large to hold in memory, or has a broken element."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

OUTSIDE = re.compile(r'["{}\[\],\n]')
INSIDE = re.compile(r'[\\"\n]')
OPENING = re.compile(r"\n([ \t]*)\{(?=([^\r\n])?)")


class ElementScanner:
    """Cuts the text of an array at its commas by looking only at brackets, quotes and line ends.

    A raw line end closes a string, since JSON has none inside one. Where the first element begins on a line of its
    own, a later line that begins the same way begins an element too, whatever the brackets before it say: so an
    element with a bracket too many or too few costs only itself.
    """

    def __init__(self, limit: int, first_line: int = 1) -> None:
        self._limit = limit
        self._line = first_line  # line of the text that comes next
        self._start = first_line  # line on which the current element begins
        self._parts: list[str] = []
        self._size = 0
        self._depth = 0
        self._quoted = False
        self._opening: str | None = None  # "\n  {": how a line begins an element

    def elements(self, chunks: Iterable[str]) -> Iterator[tuple[int, str | None]]:
        """(line, text) of each element in order, None for a text past the limit; what follows the array included."""
        first = True
        for chunk in _at_line_ends(chunks):
            if first:
                self._opening = _opening(chunk)
                first = False
            yield from self._scan(chunk)
        yield from self._finish()

    def _scan(self, chunk: str) -> Iterator[tuple[int, str | None]]:
        position, mark = 0, 0  # what lies before `mark` is taken
        while match := (INSIDE if self._quoted else OUTSIDE).search(chunk, position):
            char, position = match.group(), match.end()
            if char == "\n":
                self._quoted = False
                if self._opening and chunk.startswith(self._opening, position - 1):
                    self._take(chunk[mark : position - 1])
                    mark = position - 1
                    yield from self._finish()
                    self._depth = 1
            elif self._quoted:
                position += char == "\\"
                self._quoted = char == "\\"
            elif char == '"':
                self._quoted = True
            elif char in "[{":
                self._depth += 1
                if self._depth == 1 and char == "[":
                    self._line += chunk.count("\n", mark, position)
                    mark = position
            elif self._depth <= 1:  # a comma between elements, or the end of the array
                self._take(chunk[mark : position - 1])
                mark = position
                yield from self._finish()
                self._depth = max(0, self._depth - (char != ","))
            elif char != ",":
                self._depth -= 1
        self._take(chunk[mark:])

    def _take(self, text: str) -> None:
        if not self._size:
            stripped = text.lstrip()
            self._line += text.count("\n", 0, len(text) - len(stripped))
            self._start, text = self._line, stripped
        self._line += text.count("\n")
        self._size += len(text)
        if self._size <= self._limit:
            self._parts.append(text)

    def _finish(self) -> Iterator[tuple[int, str | None]]:
        if self._size:
            yield self._start, "".join(self._parts) if self._size <= self._limit else None
        self._parts, self._size = [], 0


def _opening(chunk: str) -> str | None:
    """The beginning of a line that begins an element, or None where a line inside one may begin alike."""
    match = OPENING.search(chunk)
    if match is None or chunk[: match.start()].strip() != "[":
        return None
    alone = match.group(2) is None  # nothing after the brace: the element spans lines, which must be indented deeper
    return None if alone and not match.group(1) else f"\n{match.group(1)}{{"


def _at_line_ends(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks that begin at a line end wherever there is one, and never after a backslash."""
    held = ""
    for chunk in chunks:
        text = held + chunk
        cut = text.rfind("\n")
        if cut <= 0:
            cut = len(text.rstrip("\\"))
        held = text[cut:]
        if cut:
            yield text[:cut]
    if held:
        yield held
