"""Speculation: the same ids as without it, fewer passes where text repeats, and nothing left in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mmcli.errors import UserError
from mmcli.generate import speculation as speculation_module
from mmcli.generate.draft import DraftModel
from mmcli.generate.engine import check_decode, check_prefill, check_truncate, check_verify
from mmcli.generate.generate import generate
from mmcli.generate.lookup import Lookup
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.speculation import Speculation
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=60, max_seq_len=256, init_std=0.2)
GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy, penalty": SamplingConfig(temperature=0, repetition_penalty=1.3),
    "sampled": SamplingConfig(temperature=0.5, seed=9),
    "without top-k": SamplingConfig(temperature=0.4, top_k=0, repetition_penalty=1, seed=4),
}
PROMPT = [5, 9, 12, 7, 30, 8] * 4


class Clock:
    """Time that passes only as an engine says."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Periodic:
    """A model whose greedy text goes round in a cycle, or never repeats; a pass takes `cost` for each token and 1."""

    can_verify, slots, max_len = True, 1, 4000

    def __init__(self, clock: Clock, *, period: int, cost: float = 0.05, pass_cost: float = 1.0) -> None:
        self.clock, self.period, self.cost, self.pass_cost = clock, period, cost, pass_cost
        self.vocab_size = 5000
        self.held: list[int] = []
        self.passes: list[int] = []

    def _logits(self, id: int) -> np.ndarray:
        logits_V = np.zeros(self.vocab_size, dtype=np.float32)
        logits_V[(id + 1) % self.period] = 9
        return logits_V

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        check_prefill(self, slot, ids)
        return self._run(ids)[-1]

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        check_decode(self, slots, ids)
        return self._run(ids)

    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        check_verify(self, slot, ids)
        return self._run(ids)

    def _run(self, ids: Sequence[int]) -> np.ndarray:
        self.clock.now += self.pass_cost * (1 + self.cost * (len(ids) - 1))
        self.held += ids
        self.passes.append(len(ids))
        return np.stack([self._logits(id) for id in ids])

    def length(self, slot: int) -> int:
        return len(self.held)

    def truncate(self, slot: int, n: int) -> None:
        check_truncate(self, slot, n)
        del self.held[n:]

    def copy(self, source: int, target: int) -> None:
        raise AssertionError("one slot")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speculation_module, "time", clock)
    return clock


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify every draft, whether it pays or not, and of every length."""
    lengths = iter(range(10**6))

    def best(self: Speculation, sequence: TokenSequence, *_: Any) -> tuple[int, float]:
        n = speculation_module.DRAFTS[next(lengths) % len(speculation_module.DRAFTS)]
        return (n, 2.0) if n < sequence.room else (0, 1.0)

    monkeypatch.setattr(Speculation, "_best", best)
    monkeypatch.setattr(speculation_module, "LOSS", 1e9)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("drafting", ["text", "the model itself", "another model"])
def test_the_ids_are_those_without(monkeypatch: pytest.MonkeyPatch, sampling: SamplingConfig, drafting: str) -> None:
    always(monkeypatch)
    engine = TorchEngine(Transformer(CONFIG, seed=3))
    limits: dict[str, Any] = {"max_new_tokens": 150, "stop_ids": {1}}
    plain = generate(engine, 0, PROMPT, sampling, **limits)
    expected = list(plain)
    draft = None
    if drafting != "text":
        weights = Transformer(CONFIG, seed=3 if drafting == "the model itself" else 4)
        draft = DraftModel(TorchEngine(weights), engine)
    speculation = Speculation(engine, draft)
    for _ in range(2):  # the second sequence finds a draft model that holds the first
        quick = generate(engine, 0, PROMPT, sampling, speculation=speculation, **limits)
        found = []
        for id in quick:
            found.append(id)
            assert quick.tokens == len(found)
            assert engine.length(0) == len(quick.sequence.ids) - 1  # what was rejected is gone
        assert found == expected and quick.sequence.ids == plain.sequence.ids
        assert quick.finish_reason == plain.finish_reason and quick.decoded == plain.decoded
    assert speculation.passes > 5
    if drafting == "the model itself":
        assert speculation.accepted > 0.4 * 2 * len(expected)


def test_a_text_that_repeats_takes_few_passes(clock: Clock) -> None:
    engine = Periodic(clock, period=20)
    found = list(generate(engine, 0, [0], GREEDY, max_new_tokens=400, speculation=Speculation(engine)))
    assert found == [(1 + n) % 20 for n in range(400)]
    assert clock.now < 400 / 4


def test_a_text_that_never_repeats_costs_nothing(clock: Clock) -> None:
    engine = Periodic(clock, period=5000)
    list(generate(engine, 0, [0], GREEDY, max_new_tokens=400, speculation=Speculation(engine)))
    assert engine.passes == [1] * 400


class Teasing(Periodic):
    """A model of few words in no order: what followed the last two before does not follow them now."""

    def __init__(self, clock: Clock, *, words: int, cost: float) -> None:
        super().__init__(clock, period=words, cost=cost)
        self.text = np.random.default_rng(7).integers(0, words, self.max_len).tolist()

    def _run(self, ids: Sequence[int]) -> np.ndarray:
        first = len(self.held)
        super()._run(ids)
        return np.stack([self._logits(self.text[place] - 1) for place in range(first, first + len(ids))])


@pytest.mark.parametrize("cost", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("words", [4, 12, 30])
def test_drafts_that_fail_cost_nothing(clock: Clock, words: int, cost: float) -> None:
    """Nor while it is being found out: a reply is short."""
    engine = Teasing(clock, words=words, cost=cost)
    generation = generate(engine, 0, [0] * 6 + [1], GREEDY, max_new_tokens=257, speculation=Speculation(engine))
    next(generation)
    start = clock.now
    assert len(list(generation)) == 256 and clock.now - start <= 256 / 0.985


def test_a_dear_pass_is_soon_left_alone(clock: Clock) -> None:
    """Verifying takes as long as decoding one by one: nothing to gain, though every draft is right."""
    engine = Periodic(clock, period=20, cost=1.0)
    list(generate(engine, 0, [0], GREEDY, max_new_tokens=2000, speculation=Speculation(engine)))
    assert clock.now <= 2000 / 0.97


@pytest.mark.parametrize(("pass_cost", "least"), [(0.05, 3.0), (0.2, 1.8)])
def test_a_draft_model_that_agrees_pays(clock: Clock, pass_cost: float, least: float) -> None:
    engine, small = Periodic(clock, period=5000), Periodic(clock, period=5000, pass_cost=pass_cost)
    speculation = Speculation(engine, DraftModel(small, engine))
    found = list(generate(engine, 0, [0], GREEDY, max_new_tokens=1000, speculation=speculation))
    assert found == list(range(1, 1001))
    assert clock.now < 1000 / least


def test_a_draft_model_that_never_agrees_costs_little(clock: Clock) -> None:
    engine, small = Periodic(clock, period=5000), Periodic(clock, period=1, pass_cost=0.3)
    speculation = Speculation(engine, DraftModel(small, engine))
    list(generate(engine, 0, range(200), GREEDY, max_new_tokens=2000, speculation=speculation))
    assert clock.now <= 2000 / 0.97
    assert speculation.passes > 3  # it was tried, and again later


def test_a_machine_that_was_busy_at_first_does_not_make_drafts_look_good(clock: Clock) -> None:
    engine, small = Periodic(clock, period=5000, pass_cost=3.0), Periodic(clock, period=1, pass_cost=0.3)
    generation = generate(
        engine, 0, range(200), GREEDY, max_new_tokens=1003, speculation=Speculation(engine, DraftModel(small, engine))
    )
    for _ in range(3):  # the plain passes by which all others are judged
        next(generation)
    engine.pass_cost, start = 1.0, clock.now
    assert len(list(generation)) == 1000
    assert clock.now - start <= 1000 / 0.95


def test_an_interrupt_leaves_the_cache_true(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    engine = TorchEngine(Transformer(CONFIG, seed=3))
    expected = list(generate(engine, 0, PROMPT, GREEDY, max_new_tokens=60))
    generation = generate(engine, 0, PROMPT, GREEDY, max_new_tokens=60, speculation=Speculation(engine))
    found = [next(generation) for _ in range(3)]
    draw, drawn = speculation_module.draw, 0

    def interrupted(*arguments: Any) -> list[int]:
        nonlocal drawn
        drawn += 1
        if drawn == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(speculation_module, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.extend(generation)
    ids = generation.sequence.ids
    assert ids == [*PROMPT, *expected][: len(ids)]
    assert engine.length(0) <= len(ids)
    again = TorchEngine(engine.model)
    assert np.allclose(engine.decode([0], [2]), again.prefill(0, [*ids[: engine.length(0) - 1], 2]), atol=1e-5)


def test_a_match_is_the_longest_and_a_draft_goes_round() -> None:
    sequence = TokenSequence([1, 2, 3, 4, 5, 9, 3, 4, 6, 1, 2, 3, 4], GREEDY, max_new_tokens=9, max_len=99)
    lookup = Lookup(sequence)
    assert lookup.match() == (4, 4)  # not the newer 3, 4
    assert lookup.draft(4, 3) == [5, 9, 3]
    for id in (7, 8, 7, 8):
        sequence.append(id)
    place, length = lookup.match()
    assert (place, length) == (15, 2) and lookup.draft(place, 5) == [7, 8, 7, 8, 7]
    assert Lookup(TokenSequence([1], GREEDY, max_new_tokens=9, max_len=99)).match() == (0, 0)


def test_what_cannot_be_is_refused(clock: Clock) -> None:
    engine, other = Periodic(clock, period=9), Periodic(clock, period=9)
    other.vocab_size = 7
    with pytest.raises(UserError, match=r"the draft model has 7 tokens, the model 5,000"):
        DraftModel(other, engine)
    engine.can_verify = False  # type: ignore[misc]
    with pytest.raises(UserError, match="cannot verify drafted tokens"):
        Speculation(engine)
