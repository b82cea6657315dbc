"""One sequence, token by token, through any engine."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np

from mmcli.errors import UserError
from mmcli.generate.engine import Engine, PromptTooLong
from mmcli.generate.sampler import Sampler, SamplingConfig

# stop: a stop id came; length: max_new_tokens; context: the engine's max_len is full.
FinishReason = Literal["stop", "length", "context"]


class Generation(Iterator[int]):
    """The ids of a reply, one at each `next`; work is done only then.

    Attributes:
        ids: the prompt and every id drawn, a stop id included: what the history holds now. The last drawn id
            is not in the engine's cache yet.
        finish_reason: why it ended; None before that.
        prompt_tokens, reused_tokens: length of the prompt, and how much of it the cache already held.
        tokens: ids yielded.
        prefill_seconds: from the start of the prefill to the first id.
        decode_steps, decode_seconds: engine calls and sampling after the first id, without the caller's own time.
    """

    def __init__(
        self,
        engine: Engine,
        slot: int,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig,
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        cached: int = 0,
    ) -> None:
        if not prompt_ids:
            raise UserError("the prompt has no tokens", "give a prompt of at least one token")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens = {max_new_tokens} leaves nothing to write", "give 1 or more")
        # One place must be left, or there is nothing to write.
        if len(prompt_ids) >= engine.max_len:
            raise PromptTooLong(len(prompt_ids), engine.max_len)
        self.ids = list(prompt_ids)
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = len(prompt_ids)
        # The last id of the prompt is always run: its logits are needed.
        self.reused_tokens = min(cached, len(prompt_ids) - 1)
        self.tokens = 0
        self.prefill_seconds = 0.0
        self.decode_steps = 0
        self.decode_seconds = 0.0
        self._engine = engine
        self._slot = slot
        self._sampler = Sampler(sampling)
        self._stop_ids = frozenset(stop_ids)
        self._limit = min(len(prompt_ids) + max_new_tokens, engine.max_len)
        self._full: FinishReason = "length" if len(prompt_ids) + max_new_tokens <= engine.max_len else "context"
        # Ids for the repetition penalty: all of the context except stop ids. To end a turn is no repetition,
        # and a chat prompt is full of ended turns.
        self._seen = np.zeros(self._limit, dtype=np.int64)
        self._n_seen = 0
        for token in prompt_ids:
            self._see(token)

    def __next__(self) -> int:
        if self.finish_reason is not None:
            raise StopIteration
        if len(self.ids) >= self._limit:
            self.finish_reason = self._full
            raise StopIteration
        start = time.perf_counter()
        logits_V = self._prefill() if self.tokens == 0 else self._engine.decode([self._slot], self.ids[-1:])[0]
        token = self._sampler.sample(logits_V, self._seen[: self._n_seen], len(self.ids))
        seconds = time.perf_counter() - start
        if self.tokens == 0:
            self.prefill_seconds = seconds
        else:
            self.decode_steps += 1
            self.decode_seconds += seconds
        self.ids.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            raise StopIteration
        self._see(token)
        self.tokens += 1
        return token

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, prefill and the first id left out; None if nothing was decoded."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds > 0 else None

    def _prefill(self) -> np.ndarray:
        self._engine.truncate(self._slot, self.reused_tokens)
        return self._engine.prefill(self._slot, self.ids[self.reused_tokens :])

    def _see(self, token: int) -> None:
        if token not in self._stop_ids:
            self._seen[self._n_seen] = token
            self._n_seen += 1


def generate(
    engine: Engine,
    slot: int,
    prompt_ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    cached: int = 0,
) -> Generation:
    """Continue `prompt_ids` in `slot` of `engine`; an iterator over the new ids, which also says why it ended.

    A stop id ends the sequence and is not yielded. Prompt and new ids together stay within `engine.max_len`.

    Args:
        prompt_ids: the whole sequence so far.
        cached: how many leading ids of it the slot already holds; whatever else the slot holds is dropped.

    Raises:
        PromptTooLong: the prompt leaves no place in the context.
        UserError: an empty prompt, or `max_new_tokens` below 1.
        MmcliError: (while iterating) logits that are not finite.
    """
    return Generation(
        engine, slot, prompt_ids, sampling, max_new_tokens=max_new_tokens, stop_ids=stop_ids, cached=cached
    )
