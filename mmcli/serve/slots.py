"""Which slot of an engine a prompt goes to, so that as little of it as possible is run again."""

from __future__ import annotations

from collections.abc import Sequence

from mmcli.generate.engine import Engine, common_prefix
from mmcli.generate.sequence import TokenSequence

WORTH_COPYING = 16  # tokens of a shared beginning; fewer are run again as quickly


class Slots:
    """The slots of an engine: the sequence that each is busy with, and the ids that its cache holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: dict[int, TokenSequence] = {}
        self._ids: list[list[int]] = [[] for _ in range(engine.slots)]
        self._used = [0] * engine.slots  # when each was taken last, by a count
        self._count = 0

    @property
    def free(self) -> list[int]:
        """The slots that no sequence holds."""
        return [slot for slot in range(self.engine.slots) if slot not in self.held]

    def take(self, sequence: TokenSequence) -> int:
        """Give a free slot to a new sequence; `reused_tokens` of it then says what the slot holds of its prompt.

        It is the slot that holds the longest beginning of the prompt. If what it holds mostly belongs to another
        conversation, or if it is busy, that beginning is copied into the free slot that was left alone the longest.
        """
        cached = [common_prefix(self._cached(slot), sequence.ids) for slot in range(self.engine.slots)]
        source = max(range(self.engine.slots), key=lambda slot: (cached[slot], -self._used[slot]))
        target = min(self.free, key=lambda slot: (self._used[slot], slot))
        if source in self.free and 2 * cached[source] >= len(self._cached(source)):
            target = source
        elif source != target and cached[source] > max(cached[target], WORTH_COPYING):
            self.engine.copy(source, target)
            cached[target] = cached[source]
        self.engine.truncate(target, cached[target])
        sequence.reused_tokens = min(cached[target], sequence.prompt_tokens - 1)
        self._count += 1
        self._used[target] = self._count
        self.held[target] = sequence
        return target

    def release(self, slot: int) -> None:
        """The sequence of a slot is over; its cache stays for a prompt that begins alike."""
        self._ids[slot] = self.held.pop(slot).ids[: self.engine.length(slot)]

    def _cached(self, slot: int) -> list[int]:
        sequence = self.held.get(slot)
        ids: Sequence[int] = self._ids[slot] if sequence is None else sequence.ids
        return list(ids[: self.engine.length(slot)])
