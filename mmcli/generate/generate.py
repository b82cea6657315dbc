"""From prompts to new ids through any engine: one prompt as a stream, or many at a time."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mmcli.errors import UserError
from mmcli.generate.engine import Engine
from mmcli.generate.grammar import Grammar
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import FinishReason, TokenSequence
from mmcli.generate.speculation import Speculation
from mmcli.generate.step import run_sequences, step


class Generation(Iterator[int]):
    """The ids of a reply, one at each `next`; work is done only then. A stop id is not among them.

    Attributes:
        sequence: prompt, ids and the reason of the end; speculation draws a few ids before they are asked for.
        prefill_seconds: from the start of the prefill to the first id.
        decoded, decode_seconds: ids drawn after the first, a stop id included; without the caller's own time.
    """

    def __init__(
        self, engine: Engine, slot: int, sequence: TokenSequence, speculation: Speculation | None = None
    ) -> None:
        self.sequence = sequence
        self.prefill_seconds = 0.0
        self.decoded = 0
        self.decode_seconds = 0.0
        self._engine = engine
        self._held = {slot: sequence}
        self._slot = slot
        self._speculation = speculation
        self._ready: deque[int] = deque()  # drawn and not asked for yet

    @classmethod
    def of_written(cls, engine: Engine, slot: int, sequence: TokenSequence, seconds: float) -> Generation:
        """The ids of a sequence that has ended already, after so many seconds."""
        generation = cls(engine, slot, sequence)
        generation.prefill_seconds = seconds
        generation._ready.extend(sequence.new_ids)
        return generation

    def __next__(self) -> int:
        if not self._ready and self.sequence.finish_reason is None:
            self._advance()
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def _advance(self) -> None:
        is_first = self.sequence.is_new
        start = time.perf_counter()
        if self._speculation is None:
            ids = [step(self._engine, self._held)[self._slot]]
        else:
            ids = self._speculation.advance(self._slot, self.sequence)
        seconds = time.perf_counter() - start
        if is_first:
            self.prefill_seconds = seconds
        else:
            self.decoded += len(ids)
            self.decode_seconds += seconds
        self._ready.extend(ids if self.sequence.stop_id is None else ids[:-1])

    @property
    def tokens(self) -> int:
        """Ids given out so far."""
        return self.sequence.tokens - len(self._ready)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended; None before that."""
        return None if self._ready else self.sequence.finish_reason

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, prefill and the first id left out; None if nothing was decoded."""
        return self.decoded / self.decode_seconds if self.decode_seconds > 0 else None


def generate(
    engine: Engine,
    slot: int,
    prompt_ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    cached: int = 0,
    grammar: Grammar | None = None,
    speculation: Speculation | None = None,
) -> Generation:
    """Continue `prompt_ids` in `slot` of `engine`; an iterator over the new ids, which also says why it ended.

    A stop id ends the sequence and is not yielded. Prompt and new ids together stay within `engine.max_len`.

    Args:
        prompt_ids: the whole sequence so far.
        cached: how many leading ids of it the slot already holds; whatever else the slot holds is dropped.
        grammar: what the reply may be, such as JSON that fits a schema.
        speculation: of this engine; the ids are the same without it.

    Raises:
        PromptTooLong: the prompt leaves no place in the context.
        UserError: an empty prompt, `max_new_tokens` below 1, a grammar without stop ids, or (while iterating) one that
            cannot be followed.
        MmcliError: (while iterating) logits that are not finite.
    """
    sequence = TokenSequence(
        prompt_ids,
        sampling,
        max_new_tokens=max_new_tokens,
        max_len=engine.max_len,
        stop_ids=stop_ids,
        cached=cached,
        grammar=grammar,
    )
    return Generation(engine, slot, sequence, speculation)


@dataclass(frozen=True)
class Completion:
    """A finished continuation of one prompt of many."""

    prompt: int  # number of the prompt, from 0
    sample: int  # which of its n continuations
    ids: list[int]  # new ids, without the stop id
    finish_reason: FinishReason
    stop_id: int | None = None  # the stop id that ended it


def generate_batch(
    engine: Engine,
    prompts: Iterable[Sequence[int]],
    sampling: SamplingConfig,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    n: int = 1,
) -> Iterator[Completion]:
    """Continue every prompt `n` times, over all slots of the engine; completions come as they end.

    A completion is the one that `generate` gives for its prompt alone: sample i draws with the seed
    `sampling.seed` + i. The samples of a prompt share its prefill. Prompts are taken from the iterable as slots become
    free. A prompt that fills the context gets no ids and the reason "context".

    Raises:
        UserError: an empty prompt, `max_new_tokens` or `n` below 1; a token that the model does not have.
        MmcliError: logits that are not finite.
    """
    if n < 1:
        raise UserError(f"n = {n} leaves nothing to write", "give 1 or more")
    stops = frozenset(stop_ids)
    samplings = [dataclasses.replace(sampling, seed=(sampling.seed + i) % 2**64) for i in range(n)]
    too_long: list[int] = []

    def sequences() -> Iterator[tuple[tuple[int, int], TokenSequence]]:
        for number, ids in enumerate(prompts):
            if len(ids) >= engine.max_len:
                too_long.append(number)
                continue
            for i, each in enumerate(samplings):
                sequence = TokenSequence(
                    ids, each, max_new_tokens=max_new_tokens, max_len=engine.max_len, stop_ids=stops
                )
                yield (number, i), sequence

    for (number, i), sequence in run_sequences(engine, sequences()):
        assert sequence.finish_reason is not None
        yield Completion(number, i, sequence.new_ids, sequence.finish_reason, sequence.stop_id)
    for number in too_long:
        for i in range(n):
            yield Completion(number, i, [], "context")
