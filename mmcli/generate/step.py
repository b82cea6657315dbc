"""The one step that every kind of generation takes, and the scheduler that keeps an engine's slots busy.

S sequences of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mmcli.generate.engine import Engine
from mmcli.generate.sampler import sample, sample_one
from mmcli.generate.sequence import TokenSequence

Key = TypeVar("Key")

READ_AT_ONCE = 512  # tokens of several prompts in one pass


def step(
    engine: Engine,
    held: Mapping[int, TokenSequence],
    *,
    budget: int | None = None,
    watch: Callable[[int, int, np.ndarray], None] | None = None,
) -> dict[int, int]:
    """Advance every sequence that has not ended by one id: new ones by reading their prompts, all others in one decode.

    What a slot holds beyond its sequence is dropped, so a step that was interrupted can be taken again.

    Args:
        held: slot -> its sequence. One that has ended is left as it is; a new one of the same prompt copies its cache
            instead of running the prompt again.
        budget: read at most so many tokens of prompts, in the order of `held`, in one pass with the ids of the others
            (chunked prefill, Agrawal et al. 2023, arXiv:2308.16369). A sequence whose prompt is not read to its end
            then draws nothing. None reads every prompt to its end, short ones together.
        watch: called with (slot, id, logits_V) of each id that is drawn; the logits are those of the model.

    Returns:
        Slot -> the id drawn, a stop id included.

    Raises:
        UserError: an id that the model does not have, or a grammar that cannot be followed.
        MmcliError: the model's logits are not finite.
    """
    if len(held) == 1 and budget is None and watch is None:  # a reply, token by token: no time for what others need
        ((slot, sequence),) = held.items()
        if sequence.finish_reason is None and not sequence.is_new and engine.length(slot) == len(sequence.ids) - 1:
            return {slot: draw([sequence], engine.decode([slot], sequence.ids[-1:]))[0]}
    active = [slot for slot, sequence in held.items() if sequence.finish_reason is None]
    logits = _logits(engine, held, active) if budget is None else _logits_within(engine, held, active, budget)
    if not logits:
        return {}
    slots = [slot for slot in active if slot in logits]
    logits_SV = np.stack([logits[slot] for slot in slots])
    drawn = dict(zip(slots, draw([held[slot] for slot in slots], logits_SV), strict=True))
    if watch is not None:
        for (slot, id), logits_V in zip(drawn.items(), logits_SV, strict=True):
            watch(slot, id, logits_V)
    return drawn


def _logits(engine: Engine, held: Mapping[int, TokenSequence], slots: Sequence[int]) -> dict[int, np.ndarray]:
    """The logits_V after each of the sequences."""
    logits: dict[int, np.ndarray] = {}
    decoding: list[int] = []
    _read_together(engine, held, [slot for slot in slots if held[slot].is_new])
    for slot in slots:
        if held[slot].is_new:
            logits[slot] = _read_prompt(engine, slot, held)
            continue
        missing = _missing(engine, slot, held[slot])
        if len(missing) == 1:
            decoding.append(slot)
        else:
            logits[slot] = engine.prefill(slot, missing)
    if decoding:
        logits_SV = engine.decode(decoding, [held[slot].ids[-1] for slot in decoding])
        logits.update(zip(decoding, logits_SV, strict=True))
    return logits


def _logits_within(
    engine: Engine, held: Mapping[int, TokenSequence], slots: Sequence[int], budget: int
) -> dict[int, np.ndarray]:
    """The logits_V after those sequences that one pass with so many tokens of prompts completes."""
    logits: dict[int, np.ndarray] = {}
    rows: dict[int, Sequence[int]] = {}
    for slot in slots:
        sequence = held[slot]
        if sequence.prompt_logits_V is not None and sequence.is_new:
            logits[slot] = _read_prompt(engine, slot, held)
            continue
        row = _missing(engine, slot, sequence)
        if len(row) > 1:
            row = row[:budget]
            budget -= len(row)
        if row:
            rows[slot] = row
    if rows:
        logits_SV = engine.extend(list(rows), list(rows.values()))
        for slot, logits_V in zip(rows, logits_SV, strict=True):
            sequence = held[slot]
            if engine.length(slot) < len(sequence.ids):
                sequence.reused_tokens = engine.length(slot)
                continue
            logits[slot] = logits_V
            if sequence.is_new:
                sequence.prompt_logits_V = logits_V
    return logits


def _missing(engine: Engine, slot: int, sequence: TokenSequence) -> list[int]:
    """The ids of a sequence that its slot does not hold yet, at least the last one."""
    start = sequence.reused_tokens if sequence.is_new else min(engine.length(slot), len(sequence.ids) - 1)
    _keep(engine, slot, start)
    return sequence.ids[start:]


def draw(sequences: Sequence[TokenSequence], logits_SV: np.ndarray) -> list[int]:
    """Draw the next id of each sequence from the logits after it, and append it.

    Raises:
        UserError: a grammar cannot be followed.
        MmcliError: the logits are not finite.
    """
    if len(sequences) == 1:
        (sequence,), logits_V = sequences, logits_SV[0]
        allowed_V = sequence.allowed(len(logits_V))
        id = sample_one(logits_V, sequence.sampling, sequence.seen_ids, len(sequence.ids), allowed_V)
        sequence.append(id)
        return [id]
    drawn: list[int] = sample(
        logits_SV,
        [sequence.sampling for sequence in sequences],
        [sequence.seen_ids for sequence in sequences],
        [len(sequence.ids) for sequence in sequences],
        [sequence.allowed(logits_SV.shape[1]) for sequence in sequences],
    ).tolist()
    for sequence, id in zip(sequences, drawn, strict=True):
        sequence.append(id)
    return drawn


def run_sequences(
    engine: Engine, sequences: Iterable[tuple[Key, TokenSequence]]
) -> Iterator[tuple[Key, TokenSequence]]:
    """Write every sequence to its end, as many at a time as the engine has slots (continuous batching).

    A slot takes the next sequence as soon as its own has ended. Sequences are taken from the iterable only then, and
    come out in the order in which they end, each with its key. When there are no more, those that are left move
    together: an engine runs slots that lie side by side without copying what they hold.

    Raises:
        UserError, MmcliError: see `step`.
    """
    waiting = iter(sequences)
    held: dict[int, TokenSequence] = {}
    keys: dict[int, Key] = {}
    are_more = True
    while True:
        for slot in range(engine.slots):
            if slot in keys:
                continue
            following = next(waiting, None)
            if following is None:
                are_more = False
                break
            keys[slot], sequence = following
            if slot in held and sequence.has_prompt_of(held[slot]):
                sequence.prompt_logits_V = held[slot].prompt_logits_V  # the slot still holds the prompt
            held[slot] = sequence
        if not keys:
            return
        step(engine, held)
        for slot in [slot for slot in keys if held[slot].finish_reason is not None]:
            yield keys.pop(slot), held[slot]
        if not are_more:
            place_of = _move_together(engine, keys)
            held = {place: held[slot] for slot, place in place_of.items()}
            keys = {place: keys[slot] for slot, place in place_of.items()}


def _move_together(engine: Engine, slots: Collection[int]) -> dict[int, int]:
    """Bring what `slots` hold into the first slots of the engine; returns slot -> its new one, these ascending."""
    first = range(len(slots))
    slot_at = {slot: slot for slot in slots if slot in first}
    outside = iter(slot for slot in slots if slot not in first)
    for place in first:
        if place not in slot_at:
            slot_at[place] = next(outside)
            engine.copy(slot_at[place], place)
    return {slot_at[place]: place for place in first}


def _read_together(engine: Engine, held: Mapping[int, TokenSequence], new: Sequence[int]) -> None:
    """Bring the different prompts of several new sequences into their slots, some in a pass.

    A short prompt alone takes three times as long: it is too few rows for the products of a pass.
    """
    if len(new) < 2:
        return
    prompts = {tuple(each.ids[: each.prompt_tokens]) for each in held.values() if each.prompt_logits_V is not None}
    rows: dict[int, list[int]] = {}
    for slot in new:
        prompt = tuple(held[slot].ids)
        if prompt in prompts:
            continue
        prompts.add(prompt)
        row = _missing(engine, slot, held[slot])
        if rows and sum(map(len, rows.values())) + len(row) > READ_AT_ONCE:
            _read(engine, held, rows)
            rows = {}
        rows[slot] = row
    if rows:
        _read(engine, held, rows)


def _read(engine: Engine, held: Mapping[int, TokenSequence], rows: Mapping[int, list[int]]) -> None:
    logits_SV = engine.extend(list(rows), list(rows.values()))
    for slot, logits_V in zip(rows, logits_SV, strict=True):
        held[slot].prompt_logits_V = logits_V


def _read_prompt(engine: Engine, slot: int, held: Mapping[int, TokenSequence]) -> np.ndarray:
    """Bring the prompt of a new sequence into its slot; returns the logits_V after it."""
    sequence = held[slot]
    if sequence.prompt_logits_V is None:
        twins = (each for each, other in held.items() if other.prompt_logits_V is not None)
        source = next((each for each in twins if sequence.has_prompt_of(held[each])), None)
        if source is None:
            _keep(engine, slot, sequence.reused_tokens)
            sequence.prompt_logits_V = engine.prefill(slot, sequence.ids[sequence.reused_tokens :])
            return sequence.prompt_logits_V
        engine.copy(source, slot)
        sequence.prompt_logits_V = held[source].prompt_logits_V
    _keep(engine, slot, sequence.prompt_tokens)
    assert sequence.prompt_logits_V is not None
    return sequence.prompt_logits_V


def _keep(engine: Engine, slot: int, n: int) -> None:
    if engine.length(slot) != n:
        engine.truncate(slot, n)
