"""Plain text files: the rules by which one is split into documents.

The rule is chosen for each file by a look at its first million characters:

- `lines`: a `.txt` file with (almost) no blank lines, fewer than one in 200 lines: a document a line (names.txt,
  articles a line).
- `paragraphs`: any other `.txt` file, and every `.md` file: the file is one document, except that a long one is cut
  at the first blank line after 16,384 characters, or, where no blank line comes, at a line end after 65,536.

In both, a document longer than 1,048,576 characters is cut there. CRLF becomes LF, line ends around a document are
dropped, and a line that cannot be decoded is rejected and ends its document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from mmcli.data.formats.lines import Line, fault
from mmcli.data.record import Record, Rejected, reject

Cut = Literal["lines", "paragraphs"]

BLANK_SHARE = 200
PARAGRAPHS_TARGET = 16_384  # characters
LINES_TARGET = 65_536
MAX_DOCUMENT = 1_048_576


def choose_cut(head: str) -> Cut:
    """The rule for a `.txt` file that begins with `head`."""
    lines = head.rstrip().split("\n")
    blank = sum(not line.strip() for line in lines)
    return "paragraphs" if blank * BLANK_SHARE >= len(lines) else "lines"


def documents_by_line(file: str, lines: Iterable[Line]) -> Iterator[Record | Rejected]:
    """A document a line."""
    for line in lines:
        if problem := fault(line.text):
            yield reject(file, line.number, problem, line.text)
        elif line.text.strip():
            yield Record(file, line.number, {"text": line.text})


def documents_by_paragraph(file: str, lines: Iterable[Line]) -> Iterator[Record | Rejected]:
    """Paragraphs joined into documents of about 16,384 characters; a document's line is its first."""
    parts: list[str] = []
    start, size = 0, 0

    def take() -> Iterator[Record]:
        nonlocal parts, size
        text = "".join(parts).rstrip("\n")
        parts, size = [], 0
        if text.strip():
            yield Record(file, start, {"text": text})

    for line in lines:
        if problem := fault(line.text):
            yield from take()
            yield reject(file, line.number, problem, line.text)
            continue
        blank = not line.text.strip()
        if (blank and size >= PARAGRAPHS_TARGET) or size >= LINES_TARGET:
            yield from take()
        if blank and not parts:
            continue
        if not parts:
            start = line.number
        if size + len(line.text) > MAX_DOCUMENT:
            yield from take()
            start = line.number
        parts.append(line.text + ("\n" if line.complete else ""))
        size += len(line.text) + 1
    yield from take()
