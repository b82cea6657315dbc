"""Drafts from the text so far: where the last tokens stood before, what followed them then. No torch here.

Prompt lookup decoding (Saxena 2023): free, and right wherever a model repeats, quotes or edits what it has read.
"""

from __future__ import annotations

from mmcli.generate.sequence import TokenSequence

SIZES = (4, 2)  # tokens of the n-grams that are looked up, the longest first
LONGEST = 16  # a match is not followed back further


class Lookup:
    """The n-grams of one sequence, each with the place behind its newest occurrence."""

    def __init__(self, sequence: TokenSequence) -> None:
        self.sequence = sequence
        self._behind: dict[tuple[int, ...], int] = {}
        self._indexed = 0  # places behind which n-grams are known

    def match(self) -> tuple[int, int]:
        """(place behind an earlier occurrence of the last tokens, how many match); (0, 0) if there is none."""
        ids, behind = self.sequence.ids, self._behind
        for end in range(self._indexed + 1, len(ids)):
            for size in SIZES:
                if end >= size:
                    behind[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        for size in SIZES:
            place = behind.get(tuple(ids[-size:]), 0)
            if place:
                length = size
                while length < min(LONGEST, place) and ids[place - 1 - length] == ids[-1 - length]:
                    length += 1
                return place, length
        return 0, 0

    def draft(self, place: int, n: int) -> list[int]:
        """The `n` ids from `place` on; past the end of the text the draft goes on copying itself."""
        ids = self.sequence.ids
        period = len(ids) - place
        found = ids[place : place + n]
        while len(found) < n:
            found.append(found[len(found) - period])
        return found
