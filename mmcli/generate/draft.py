"""Drafts from a small model of the same vocabulary. No torch here."""

from __future__ import annotations

import numpy as np

from mmcli.errors import UserError
from mmcli.generate.engine import Engine
from mmcli.generate.sampler import sample_one
from mmcli.generate.sequence import TokenSequence


class DraftModel:
    """An engine that writes a few ids ahead of a sequence, in its slot 0 (Leviathan et al. 2023).

    It draws with the sequence's own random numbers, so it agrees with the target as often as the two distributions do.
    """

    def __init__(self, engine: Engine, target: Engine) -> None:
        """Both engines must have one vocabulary.

        Raises:
            UserError: they have not.
        """
        if engine.vocab_size != target.vocab_size:
            what = f"the draft model has {engine.vocab_size:,} tokens, the model {target.vocab_size:,}"
            raise UserError(what, "give --draft a model with the same tokenizer")
        self._engine = engine
        self._sequence: TokenSequence | None = None
        self._held: list[int] = []  # what the slot holds
        self._agreed = 0  # leading ids of it that are known to be the sequence's

    def missing(self, sequence: TokenSequence) -> int:
        """Ids of the sequence that it has not read."""
        self._compare(sequence)
        return len(sequence.ids) - self._agreed

    def has_room(self, sequence: TokenSequence, n: int) -> bool:
        """Whether `n` ids behind the sequence fit into its context."""
        return len(sequence.ids) + n <= self._engine.max_len

    def read(self, sequence: TokenSequence) -> None:
        """Read the sequence up to its last id but one; `draft` reads the last."""
        self._compare(sequence)
        start, ids = self._agreed, sequence.ids
        self._truncate(start)
        if start < len(ids) - 1:
            self._engine.prefill(0, ids[start:-1])
            self._held += ids[start:-1]
            self._agreed = len(self._held)

    def draft(self, sequence: TokenSequence, n: int) -> list[int]:
        """The next `n` ids as it would write them."""
        self.read(sequence)
        drafted: list[int] = []
        last = sequence.ids[-1]
        for position in range(len(sequence.ids), len(sequence.ids) + n):
            logits_1V = self._engine.decode([0], [last])
            self._held.append(last)
            seen = sequence.seen_ids
            if drafted and sequence.sampling.repetition_penalty != 1:
                seen = np.concatenate([seen, np.array(drafted, dtype=np.int64)])
            last = sample_one(logits_1V[0], sequence.sampling, seen, position)
            drafted.append(last)
        return drafted

    def _compare(self, sequence: TokenSequence) -> None:
        """Find how much of what the slot holds is of the sequence."""
        if sequence is not self._sequence:
            self._sequence, self._agreed = sequence, 0
        ids, held, n = sequence.ids, self._held, self._agreed
        most = min(len(ids) - 1, len(held), self._engine.length(0))
        while n < most and ids[n] == held[n]:
            n += 1
        self._agreed = n

    def _truncate(self, n: int) -> None:
        self._engine.truncate(0, n)
        del self._held[n:]
