"""The protocol of an engine: a model with key/value caches, run token by token. Every backend implements it.

S slots of an engine, V vocabulary. A slot is one sequence with its key/value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mmcli.errors import UserError

VERIFIED_TOKENS = 16  # most ids of one `Engine.verify`


class Engine(Protocol):
    """A model with `slots` caches of `max_len` tokens each.

    A call that raises, an interrupt included, leaves `length` true: what is counted is in the cache.
    """

    vocab_size: int
    max_len: int
    slots: int
    can_verify: bool  # else `verify` must not be called

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` (at least one) to the slot, going on where it stands; float32 logits_V after the last id.

        Raises:
            PromptTooLong: the slot would hold more than `max_len` tokens; it is left as it was.
        """

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """Append one id to each of the (different) slots, of whatever lengths; float32 logits_SV.

        Raises:
            PromptTooLong: a slot is full; all are left as they were.
        """

    def extend(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Append `ids[i]` (at least one) to each of the (different) slots; float32 logits_SV after the last of each.

        It is `prefill` and `decode` at once, in one pass of the model where the backend can run rows of different
        length together.

        Raises:
            PromptTooLong: a slot would hold more than `max_len` tokens; all are left as they were.
        """

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Append up to VERIFIED_TOKENS `ids` to the slot in one pass; float32 logits_TV, after each of them.

        Raises:
            PromptTooLong: the slot would hold more than `max_len` tokens; it is left as it was.
        """

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""

    def truncate(self, slot: int, n: int) -> None:
        """Keep the first `n` tokens of the slot; `n` is at most its length."""

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""


class PromptTooLong(UserError):
    """More tokens than the context holds."""

    def __init__(self, tokens: int, max_len: int) -> None:
        super().__init__(
            f"the prompt has {tokens:,} tokens, the context holds {max_len:,}",
            "shorten the prompt, or use a model with a longer context",
        )
        self.tokens = tokens
        self.max_len = max_len


def check_prefill(engine: Engine, slot: int, ids: Sequence[int]) -> None:
    """The checks of every backend before a prefill.

    Raises:
        PromptTooLong: the ids do not fit behind what the slot holds.
        UserError: an id that the model has no embedding for.
    """
    assert len(ids) > 0, "prefill needs at least one id"
    _check_slots(engine, [slot])
    total = engine.length(slot) + len(ids)
    if total > engine.max_len:
        raise PromptTooLong(total, engine.max_len)
    _check_ids(engine, ids)


def check_decode(engine: Engine, slots: Sequence[int], ids: Sequence[int]) -> None:
    """The checks of every backend before a decode.

    Raises:
        PromptTooLong: a slot is full.
        UserError: an id that the model has no embedding for.
    """
    assert len(slots) == len(ids) > 0, f"{len(slots)} slots for {len(ids)} ids"
    assert len(set(slots)) == len(slots), f"a slot is named twice: {list(slots)}"
    _check_slots(engine, slots)
    longest = max(engine.length(slot) for slot in slots)
    if longest >= engine.max_len:
        raise PromptTooLong(longest + 1, engine.max_len)
    _check_ids(engine, ids)


def check_extend(engine: Engine, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
    """The checks of every backend before it extends; it raises what `check_prefill` raises."""
    assert len(slots) == len(ids) > 0, f"{len(slots)} slots for {len(ids)} rows"
    assert len(set(slots)) == len(slots), f"a slot is named twice: {list(slots)}"
    for slot, row in zip(slots, ids, strict=True):
        check_prefill(engine, slot, row)


def extend_in_turn(engine: Engine, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
    """`Engine.extend` by `decode` and `prefill`: rows of one id together, the others one after the other."""
    check_extend(engine, slots, ids)
    logits_of: dict[int, np.ndarray] = {}
    single = [slot for slot, row in zip(slots, ids, strict=True) if len(row) == 1]
    if single:
        logits_SV = engine.decode(single, [row[0] for row in ids if len(row) == 1])
        logits_of.update(zip(single, logits_SV, strict=True))
    for slot, row in zip(slots, ids, strict=True):
        if len(row) > 1:
            logits_of[slot] = engine.prefill(slot, row)
    return np.stack([logits_of[slot] for slot in slots])


def check_verify(engine: Engine, slot: int, ids: Sequence[int]) -> None:
    """The checks of every backend before it verifies; it raises what `check_prefill` raises."""
    assert engine.can_verify and len(ids) <= VERIFIED_TOKENS, f"{len(ids)} ids cannot be verified"
    check_prefill(engine, slot, ids)


def check_truncate(engine: Engine, slot: int, n: int) -> None:
    """The checks of every backend before it truncates."""
    _check_slots(engine, [slot])
    assert 0 <= n <= engine.length(slot), f"cannot truncate {engine.length(slot)} tokens to {n}"


def check_copy(engine: Engine, source: int, target: int) -> None:
    """The checks of every backend before it copies."""
    _check_slots(engine, [source, target])


def _check_slots(engine: Engine, slots: Sequence[int]) -> None:
    assert all(0 <= slot < engine.slots for slot in slots), f"slots {list(slots)} of {engine.slots}"


def _check_ids(engine: Engine, ids: Sequence[int]) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= engine.vocab_size:
        wrong = low if low < 0 else high
        raise UserError(
            f"token id {wrong} is outside the model's vocabulary of {engine.vocab_size:,}",
            "use the tokenizer that the model was trained with",
        )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading ids that two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
