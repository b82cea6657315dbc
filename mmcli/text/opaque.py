"""Marks that stand for texts while a chat template is rendered.

A template sees a person's text only as a mark, so the text can become neither template nor control token, and it can
be told afterwards which texts the template left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

# Two private-use characters around a number. No text reaches the rendering, so nothing else can look like a mark.
OPEN, CLOSE = "\ue000", "\ue001"
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
TOOLS = -1  # the owner of texts that come from the tools


class Mark(str):
    """A mark in a template's hands: stripping it strips the text behind it, its length is that of the text."""

    _texts: Texts
    _index: int

    def __len__(self) -> int:
        return len(self._texts.texts[self._index])

    def strip(self, chars: str | None = None, /) -> str:
        return self._texts.change(self._index, lambda text: text.strip(chars))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._texts.change(self._index, lambda text: text.lstrip(chars))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._texts.change(self._index, lambda text: text.rstrip(chars))


class Texts:
    """The texts of one conversation, by the number of their mark."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.owners: list[int | None] = []  # the message each came from; TOOLS; None: from neither
        self._places: list[str | None] = []  # where it was found, None if a template may leave it out
        self._parts: list[tuple[int, ...]] = []  # the texts it was made from
        self._of_tools: dict[str, Mark] = {}
        self._emptied: list[int] = []  # texts of which stripping left nothing

    def hide(self, text: str, owner: int | None, place: str | None) -> str:
        """A mark for `text`; an empty text stays as it is, so that a template can test for it."""
        if not text or owner != TOOLS:
            return self._mark(text, owner, place, ()) if text else text
        # One mark for equal texts: templates ask whether a parameter's name is in the list `required`.
        if text not in self._of_tools:
            self._of_tools[text] = self._mark(text, owner, place, ())
        return self._of_tools[text]

    def _mark(self, text: str, owner: int | None, place: str | None, parts: tuple[int, ...]) -> Mark:
        index = len(self.texts)
        self.texts.append(text)
        self.owners.append(owner)
        self._places.append(place)
        self._parts.append(parts)
        mark = Mark(f"{OPEN}{index}{CLOSE}")
        mark._texts, mark._index = self, index
        return mark

    def change(self, index: int, function: Callable[[str], str]) -> str:
        """A mark for what `function` makes of a text."""
        changed = function(self.texts[index])
        if not changed:
            self._emptied.append(index)
            return ""
        return self._mark(changed, self.owners[index], None, (index,))

    def to_json(self, value: Any, **options: Any) -> str:
        """A mark for the JSON text of `value`, marks in it replaced by their texts (the filter `tojson`)."""
        parts: list[int] = []
        text = json.dumps(self._reveal(value, parts), **options)
        owners = {owner for owner in (self.owners[part] for part in parts) if owner is not None}
        return self._mark(text, max(owners, default=None), None, tuple(parts))

    def _reveal(self, value: Any, parts: list[int]) -> Any:
        if isinstance(value, str):
            parts.extend(int(index) for index in MARK.findall(value))
            return MARK.sub(lambda match: self.texts[int(match[1])], value)
        if isinstance(value, dict):
            return {self._reveal(key, parts): self._reveal(item, parts) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._reveal(item, parts) for item in value]
        return value

    def lost(self, shown: Collection[int]) -> list[str]:
        """The places of texts that had to be rendered and are not among the `shown` marks."""
        found = self.origins([*shown, *self._emptied])
        return [place for index, place in enumerate(self._places) if place is not None and index not in found]

    def origins(self, indices: Collection[int]) -> set[int]:
        """These texts, and all those that they were made from."""
        found: set[int] = set()
        queue = list(indices)
        while queue:
            index = queue.pop()
            if index not in found:
                found.add(index)
                queue.extend(self._parts[index])
        return found
