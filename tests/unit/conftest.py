"""An engine whose replies are written in advance, and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]


class ScriptedEngine:
    """Each prefill starts the next of `replies`; every logit but the scripted id's is 0.

    `prefills` counts the ids of each prefill; `held` is what the slots hold.
    """

    def __init__(self, replies: Sequence[Sequence[int]], *, vocab_size: int, max_len: int = 1000) -> None:
        self.vocab_size, self.max_len, self.slots, self.can_verify = vocab_size, max_len, 1, False
        self.held: list[list[int]] = [[]]
        self.prefills: list[int] = []
        self._replies = [list(reply) for reply in replies]
        self._rest: list[int] = []
        self.interrupt_in: int | None = None  # decode calls before a Ctrl-C

    def _next_logits(self) -> np.ndarray:
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[self._rest.pop(0)] = 100
        return logits_V

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        check_prefill(self, slot, ids)
        self.prefills.append(len(ids))
        self.held[slot] += ids
        self._rest = self._replies.pop(0)
        return self._next_logits()

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        check_decode(self, slots, ids)
        if self.interrupt_in is not None:
            self.interrupt_in -= 1
            if self.interrupt_in < 0:
                self.interrupt_in = None
                raise KeyboardInterrupt
        for slot, token in zip(slots, ids, strict=True):
            self.held[slot].append(token)
        return np.stack([self._next_logits()])

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        raise AssertionError("a script cannot be verified")

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def truncate(self, slot: int, n: int) -> None:
        check_truncate(self, slot, n)
        del self.held[slot][n:]

    def copy(self, source: int, target: int) -> None:
        check_copy(self, source, target)
        self.held[target] = list(self.held[source])


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(LINES * 3, vocab_size=400)


@pytest.fixture
def scripted(tokenizer: Tokenizer) -> Callable[..., ScriptedEngine]:
    """make(*texts, end=True, **options): an engine that replies with these texts, each with the end token."""

    def make(*replies: str | Sequence[int], end: bool = True, **options: int) -> ScriptedEngine:
        encoded = [tokenizer.encode_text(r) if isinstance(r, str) else list(r) for r in replies]
        stop = [tokenizer.eos_id] if end else []
        return ScriptedEngine([[*ids, *stop] for ids in encoded], vocab_size=tokenizer.vocab_size, **options)

    return make
