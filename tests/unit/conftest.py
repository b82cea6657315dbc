"""An engine whose slots are lists, one whose replies are written in advance, and a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate, extend_in_turn
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
TOOLLESS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ListEngine:
    """An engine whose slots are lists of ids; what their next logits are is up to `_logits`."""

    can_verify = False
    extend = extend_in_turn

    def __init__(self, *, vocab_size: int, max_len: int, slots: int) -> None:
        self.vocab_size, self.max_len, self.slots = vocab_size, max_len, slots
        self.held: list[list[int]] = [[] for _ in range(slots)]

    def _logits(self, slot: int) -> np.ndarray:
        """logits_V after what the slot holds."""
        raise NotImplementedError

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        check_prefill(self, slot, ids)
        self.held[slot] += ids
        return self._logits(slot)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        check_decode(self, slots, ids)
        for slot, id in zip(slots, ids, strict=True):
            self.held[slot].append(id)
        return np.stack([self._logits(slot) for slot in slots])

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        raise AssertionError("an engine of lists does not verify")

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def truncate(self, slot: int, n: int) -> None:
        check_truncate(self, slot, n)
        del self.held[slot][n:]

    def copy(self, source: int, target: int) -> None:
        check_copy(self, source, target)
        self.held[target] = list(self.held[source])


class ScriptedEngine(ListEngine):
    """Each prefill starts the next of `replies`; every logit but the scripted id's is 0.

    `prefills` counts the ids of each prefill.
    """

    def __init__(self, replies: Sequence[Sequence[int]], *, vocab_size: int, max_len: int = 1000) -> None:
        super().__init__(vocab_size=vocab_size, max_len=max_len, slots=1)
        self.prefills: list[int] = []
        self._replies = [list(reply) for reply in replies]
        self._rest: list[int] = []
        self.interrupt_in: int | None = None  # decode calls before a Ctrl-C

    def _logits(self, slot: int) -> np.ndarray:
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[self._rest.pop(0)] = 100
        return logits_V

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        check_prefill(self, slot, ids)
        self.prefills.append(len(ids))
        self._rest = self._replies.pop(0)
        return super().prefill(slot, ids)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        if self.interrupt_in is not None:
            self.interrupt_in -= 1
            if self.interrupt_in < 0:
                self.interrupt_in = None
                raise KeyboardInterrupt
        return super().decode(slots, ids)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(LINES * 3, vocab_size=400)


@pytest.fixture(scope="session")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """make(template, call_tokens=True): that tokenizer with another template, and with tokens for calls or without."""

    def make(template: str, call_tokens: bool = True) -> Tokenizer:
        folder = tmp_path_factory.mktemp("templated")
        train_tokenizer(LINES * 3, vocab_size=400).save(folder)
        if not call_tokens:
            path = folder / "tokenizer.json"
            named = re.sub(r"(</?)tool_(call|response)>", r"\1unused_\2>", path.read_text(encoding="utf-8"))
            path.write_text(named, encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return Tokenizer.load(folder)

    return make


@pytest.fixture(scope="session")
def toolless(templated: Callable[..., Tokenizer]) -> Tokenizer:
    """A tokenizer whose template knows no tools, and without tokens for calls, as that of SmolLM2."""
    return templated(TOOLLESS, call_tokens=False)


@pytest.fixture
def scripted(tokenizer: Tokenizer) -> Callable[..., ScriptedEngine]:
    """make(*texts, end=True, **options): an engine that replies with these texts, each with the end token."""

    def make(*replies: str | Sequence[int], end: bool = True, **options: int) -> ScriptedEngine:
        encoded = [tokenizer.encode_text(r) if isinstance(r, str) else list(r) for r in replies]
        stop = [tokenizer.eos_id] if end else []
        return ScriptedEngine([[*ids, *stop] for ids in encoded], vocab_size=tokenizer.vocab_size, **options)

    return make
