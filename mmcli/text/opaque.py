"""The texts of one conversation while a chat template is rendered with marks in their place.

A template sees a person's text only as a mark, so the text can become neither template nor control token, and it can
be told afterwards which texts the template left out.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Collection
from typing import Any

from mmcli.text.marked import CLOSE, MARK, OPEN, Marked

TOOLS = -1  # the owner of texts that come from the tools
# Templates that split a text at these write them again themselves.
TAGS = re.compile(r"</?think>")


class Texts:
    """The texts of one conversation, by the number of their mark.

    Attributes:
        texts: what each mark stands for; parts of texts and what was made of them have marks of their own.
        owners: the message that each came from; TOOLS; None: from neither.
        inspected: a template found something in a text or changed one (see `Marked`).
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.owners: list[int | None] = []
        self.inspected = False
        self._places: list[str | None] = []  # where each was found, None if a template may leave it out
        self._sources: list[tuple[int, ...]] = []  # the marks it was made from
        self._parts: dict[int, tuple[int, int]] = {}  # start and end in its only source, for a part of that
        self._of_tools: dict[str, Marked] = {}

    @functools.cached_property
    def now(self) -> datetime.datetime:
        """The time that templates are told."""
        return datetime.datetime.now()

    def hide(self, text: str, owner: int | None, place: str | None) -> str:
        """A mark for `text`; an empty text stays as it is, so that a template can test for it."""
        if not text:
            return text
        # One mark for equal texts: templates ask whether a parameter's name is in the list `required`.
        if owner != TOOLS:
            return Marked(self._mark(text, owner, place, ()), self)
        if text not in self._of_tools:
            self._of_tools[text] = Marked(self._mark(text, owner, place, ()), self)
        return self._of_tools[text]

    def _mark(self, text: str, owner: int | None, place: str | None, sources: tuple[int, ...]) -> str:
        index = len(self.texts)
        self.texts.append(text)
        self.owners.append(owner)
        self._places.append(place)
        self._sources.append(sources)
        return f"{OPEN}{index}{CLOSE}"

    def part(self, index: int, start: int, end: int) -> str:
        """The mark of `texts[index][start:end]`."""
        text = self.texts[index]
        if (start, end) == (0, len(text)):
            return f"{OPEN}{index}{CLOSE}"
        mark = self._mark(text[start:end], self.owners[index], None, (index,))
        self._parts[len(self.texts) - 1] = (start, end)
        return mark

    def made(self, text: str, sources: tuple[int, ...]) -> str:
        """A mark for a text that was made from others, "" for none."""
        owners = {owner for owner in (self.owners[source] for source in sources) if owner is not None}
        return self._mark(text, max(owners, default=None), None, sources) if text else ""

    def wrap(self, value: str) -> str:
        """`value` as a `Marked` string if it holds a mark."""
        return Marked(value, self) if OPEN in value else value

    def reveal(self, value: str) -> str:
        """`value` with the texts in place of their marks."""
        return MARK.sub(lambda match: self.texts[int(match[1])], value)

    def numbers(self, value: str) -> list[int]:
        """The numbers of the marks in `value`, in order."""
        return [int(number) for number in MARK.findall(value)]

    def to_json(self, value: Any, **options: Any) -> str:
        """A mark for the JSON text of `value`, marks in it replaced by their texts (the filter `tojson`)."""
        sources: list[int] = []
        text = json.dumps(self._reveal_all(value, sources), **options)
        return self.wrap(self.made(text, tuple(sources)))

    def _reveal_all(self, value: Any, sources: list[int]) -> Any:
        if isinstance(value, str):
            plain = str.__str__(value)
            sources.extend(self.numbers(plain))
            return self.reveal(plain)
        if isinstance(value, dict):
            return {self._reveal_all(key, sources): self._reveal_all(item, sources) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._reveal_all(item, sources) for item in value]
        return value

    def lost(self, shown: Collection[int]) -> list[str]:
        """The places of texts that had to be rendered, of which the `shown` marks lack more than blanks and tags."""
        required = [index for index, place in enumerate(self._places) if place is not None]
        shown = set(shown)
        if all(index in shown for index in required):
            return []
        covered: dict[int, list[tuple[int, int]]] = {index: [(0, len(self.texts[index]))] for index in shown}
        for index in reversed(range(len(self.texts))):  # what is made of a text has a higher number than the text
            if index not in covered or not self._sources[index]:
                continue
            if index in self._parts:
                offset, source = self._parts[index][0], self._sources[index][0]
                shifted = [(start + offset, end + offset) for start, end in covered[index]]
                covered.setdefault(source, []).extend(shifted)
            elif not self._left(index, covered[index]):
                for source in self._sources[index]:
                    covered.setdefault(source, []).append((0, len(self.texts[source])))
        return [str(self._places[index]) for index in required if self._left(index, covered.get(index, []))]

    def _left(self, index: int, covered: list[tuple[int, int]]) -> bool:
        """True if a text has more than blanks and tags outside of the ranges `covered`."""
        text, at, rest = self.texts[index], 0, []
        for start, end in sorted(covered):
            rest.append(text[at : max(at, start)])
            at = max(at, end)
        return any(TAGS.sub("", part).strip() for part in [*rest, text[at:]])

    def origins(self, indices: Collection[int]) -> set[int]:
        """These texts, and all those that they were made from."""
        found: set[int] = set()
        queue = list(indices)
        while queue:
            index = queue.pop()
            if index not in found:
                found.add(index)
                queue.extend(self._sources[index])
        return found


class Plain(Texts):
    """The texts themselves, for a rendering as other programs do it."""

    def hide(self, text: str, owner: int | None, place: str | None) -> str:
        """`text`."""
        return text

    def wrap(self, value: str) -> str:
        """`value`."""
        return value

    def reveal(self, value: str) -> str:
        """`value`."""
        return value

    def numbers(self, value: str) -> list[int]:
        """None: there are no marks."""
        return []

    def to_json(self, value: Any, **options: Any) -> str:
        """The JSON text of `value`."""
        return json.dumps(value, **options)
