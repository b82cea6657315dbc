"""The state of one sequence while a model writes it, apart from the engine that runs it. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from mmcli.errors import UserError
from mmcli.generate.engine import PromptTooLong
from mmcli.generate.grammar import Grammar
from mmcli.generate.sampler import SamplingConfig

# stop: a stop id came; length: max_new_tokens; context: the engine's max_len is full.
FinishReason = Literal["stop", "length", "context"]


class TokenSequence:
    """A prompt and the ids drawn after it, with all that decides the next one and the end.

    Attributes:
        ids: the prompt and every id drawn, a stop id included. The last drawn id is in no cache yet.
        prompt_tokens: length of the prompt.
        reused_tokens: leading ids of the prompt that the slot already holds; the last one is always run.
        sampling: how ids are drawn.
        finish_reason: why the sequence ended; None before that.
        prompt_logits_V: after the prompt, once it was read; other sequences of the same prompt start from them.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig,
        *,
        max_new_tokens: int,
        max_len: int,
        stop_ids: Collection[int] = (),
        cached: int = 0,
        grammar: Grammar | None = None,
    ) -> None:
        """A sequence of which nothing is drawn yet.

        Args:
            max_new_tokens: limit of ids after the prompt.
            max_len: limit of the whole sequence (`Engine.max_len`).
            stop_ids: ids that end it.
            cached: leading ids of the prompt that its slot holds.
            grammar: what the new ids may be; a stop id comes only where their text is complete.

        Raises:
            PromptTooLong: the prompt leaves no place in the context.
            UserError: an empty prompt, `max_new_tokens` below 1, or a grammar without stop ids.
        """
        if not prompt_ids:
            raise UserError("the prompt has no tokens", "give a prompt of at least one token")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens = {max_new_tokens} leaves nothing to write", "give 1 or more")
        if len(prompt_ids) >= max_len:
            raise PromptTooLong(len(prompt_ids), max_len)
        self.ids = list(prompt_ids)
        self.prompt_tokens = len(prompt_ids)
        self.reused_tokens = min(cached, len(prompt_ids) - 1)
        self.sampling = sampling
        self.finish_reason: FinishReason | None = None
        self.prompt_logits_V: np.ndarray | None = None
        self._stop_ids = frozenset(stop_ids)
        self._grammar = None if grammar is None else grammar.start(self._stop_ids)
        self._limit = min(len(prompt_ids) + max_new_tokens, max_len)
        self._reason_at_limit: FinishReason = "length" if len(prompt_ids) + max_new_tokens <= max_len else "context"
        # To end a turn is no repetition, and a chat prompt is full of ended turns: stop ids are not penalized.
        seen = [id for id in prompt_ids if id not in self._stop_ids]
        self._seen = np.empty(len(seen) + self._limit - len(prompt_ids), dtype=np.int64)
        self._seen[: len(seen)] = seen
        self._n_seen = len(seen)

    @property
    def is_new(self) -> bool:
        """True until the first id is drawn."""
        return len(self.ids) == self.prompt_tokens

    @property
    def room(self) -> int:
        """How many more ids may be drawn before the limit."""
        return self._limit - len(self.ids)

    @property
    def stop_id(self) -> int | None:
        """The stop id that ended the sequence, if one did."""
        return self.ids[-1] if self.finish_reason == "stop" else None

    @property
    def tokens(self) -> int:
        """The number of ids drawn, without the stop id."""
        return len(self.ids) - self.prompt_tokens - (self.finish_reason == "stop")

    @property
    def new_ids(self) -> list[int]:
        """The ids drawn, without the stop id."""
        return self.ids[self.prompt_tokens : self.prompt_tokens + self.tokens]

    @property
    def seen_ids(self) -> np.ndarray:
        """The ids that the repetition penalty applies to: all but stop ids."""
        return self._seen[: self._n_seen]

    def allowed(self, vocab_size: int) -> np.ndarray | None:
        """[vocab_size] bool, the ids that the grammar lets come next; None without a grammar.

        Raises:
            UserError: see `GrammarState.allowed`.
        """
        return None if self._grammar is None else self._grammar.allowed(vocab_size)

    def append(self, id: int) -> None:
        """Take the next id, and end the sequence if it is a stop id or the limit is reached."""
        self.ids.append(id)
        if id in self._stop_ids:
            self.finish_reason = "stop"
            return
        if self._grammar is not None:
            self._grammar.consume(id)
        self._seen[self._n_seen] = id
        self._n_seen += 1
        if len(self.ids) >= self._limit:
            self.finish_reason = self._reason_at_limit

    def has_prompt_of(self, other: TokenSequence) -> bool:
        """True if both have the same prompt."""
        n = self.prompt_tokens
        return n == other.prompt_tokens and self.ids[:n] == other.ids[:n]
