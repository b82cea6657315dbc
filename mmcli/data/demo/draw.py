"""Random draws that are the same on every Python version and hash seed.

Only `random.Random.random()` is used, the one method whose sequence Python promises to keep. Every part of the corpus
has a stream of its own, so a change in one leaves the others as they were.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """One named stream of random choices."""

    def __init__(self, seed: int, name: str) -> None:
        self._random = random.Random(f"{seed}:{name}").random

    def chance(self, probability: float) -> bool:
        """True with this probability (0 to 1)."""
        return self._random() < probability

    def number(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[int(self._random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in a new order (Fisher-Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = int(self._random() * (i + 1))
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` items from different places; all of them, shuffled, where there are fewer."""
        if count * 4 >= len(items):
            return self.shuffled(items)[:count]
        places: list[int] = []
        while len(places) < count:
            place = int(self._random() * len(items))
            if place not in places:
                places.append(place)
        return [items[place] for place in places]

    def deck(self, items: Sequence[T]) -> Iterator[T]:
        """Items without end, each as often as any other: a deck that is reshuffled when it runs out."""
        while True:
            yield from self.shuffled(items)


def stable_number(text: str) -> int:
    """A 64-bit number that depends on the text alone (SHA-256)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(keys: Sequence[str], share: float) -> frozenset[str]:
    """The `share` (0 to 1) of the keys with the smallest stable numbers: the same choice in any order of the keys."""
    ranked = sorted(keys, key=lambda key: stable_number(f"held-out:{key}"))
    return frozenset(ranked[: round(len(keys) * share)])
