"""The one step: a sequence is the same alone and among others, and samples of one prompt share its prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mmcli.errors import UserError
from mmcli.generate import step as step_module
from mmcli.generate.engine import Engine
from mmcli.generate.generate import Completion, generate, generate_batch
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.step import run_sequences, step
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, max_seq_len=64, init_std=0.2)
SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0, repetition_penalty=1),
    "greedy, penalty": SamplingConfig(temperature=0, repetition_penalty=1.3),
    "sampled": SamplingConfig(temperature=1.0, seed=9),
    "without top-k": SamplingConfig(temperature=1.2, top_k=0, seed=4),
}
STOPS = set(range(12))


class Counting(TorchEngine):
    """A torch engine that keeps the calls made to it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[str, int]] = []
        self.decoded: list[list[int]] = []  # the slots of each decode
        self.fail_in: int | None = None  # decode calls before a Ctrl-C after the work is done

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        self.calls.append(("prefill", len(ids)))
        return super().prefill(slot, ids)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        self.calls.append(("decode", len(slots)))
        self.decoded.append(list(slots))
        logits_SV = super().decode(slots, ids)
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                raise KeyboardInterrupt
        return logits_SV

    def extend(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        self.calls.append(("extend", len(slots)))
        return super().extend(slots, ids)

    def copy(self, source: int, target: int) -> None:
        self.calls.append(("copy", target))
        super().copy(source, target)

    def count(self, name: str) -> int:
        return sum(each == name for each, _ in self.calls)


def engine(slots: int = 1, **options: Any) -> Counting:
    return Counting(Transformer(CONFIG, seed=3), slots=slots, **options)


def prompts(count: int = 9) -> list[list[int]]:
    return [np.random.default_rng(n).integers(12, 300, 1 + 3 * n % 17).tolist() for n in range(count)]


def by_place(found: Any) -> dict[tuple[int, int], Completion]:
    return {(each.prompt, each.sample): each for each in found}


def alone(one: Engine, prompt: Sequence[int], sampling: SamplingConfig, max_new_tokens: int) -> tuple[Any, ...]:
    generation = generate(one, 0, prompt, sampling, max_new_tokens=max_new_tokens, stop_ids=STOPS)
    ids = list(generation)
    return ids, generation.finish_reason, generation.sequence.stop_id


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("slots", [1, 4, 20])
def test_a_sequence_is_the_same_alone_and_in_a_batch(sampling: SamplingConfig, slots: int) -> None:
    batch = by_place(generate_batch(engine(slots), prompts(), sampling, max_new_tokens=20, stop_ids=STOPS))
    one = engine()
    assert {each.finish_reason for each in batch.values()} <= {"stop", "length"} and len(batch) == 9
    for number, prompt in enumerate(prompts()):
        found = batch[number, 0]
        assert (found.ids, found.finish_reason, found.stop_id) == alone(one, prompt, sampling, 20)


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_samples_of_a_prompt_share_its_prefill(slots: int) -> None:
    sampling = SamplingConfig(temperature=1.0, seed=2**64 - 2)  # the seeds of the samples go round
    shared = engine(slots)
    batch = by_place(generate_batch(shared, prompts(3), sampling, max_new_tokens=15, stop_ids=STOPS, n=6))
    assert len(batch) == 18
    assert sum(count for name, count in shared.calls if name == "extend") + shared.count("prefill") == 3
    assert shared.count("copy") >= (3 if slots > 1 else 0)
    one = engine()
    for number, prompt in enumerate(prompts(3)):
        for i in range(6):
            seeded = SamplingConfig(temperature=1.0, seed=(2**64 - 2 + i) % 2**64)
            found = batch[number, i]
            assert (found.ids, found.finish_reason, found.stop_id) == alone(one, prompt, seeded, 15)
    assert len({tuple(batch[0, i].ids) for i in range(6)}) > 3


def test_a_step_decodes_all_slots_in_one_call_and_each_by_its_own_config() -> None:
    together = engine(4)
    held = {
        slot: TokenSequence(prompt, sampling, max_new_tokens=10, max_len=64)
        for slot, prompt, sampling in zip((3, 0, 2, 1), prompts(4), SAMPLINGS.values(), strict=True)
    }
    while any(each.finish_reason is None for each in held.values()):
        drawn = step(together, held)
        assert {slot: held[slot].ids[-1] for slot in drawn} == drawn
    assert step(together, held) == {}
    assert together.calls == [("extend", 4), *[("decode", 4)] * 9]
    for sequence in held.values():
        prompt = sequence.ids[: sequence.prompt_tokens]
        expected = list(generate(engine(), 0, prompt, sequence.sampling, max_new_tokens=10))
        assert sequence.new_ids == expected and sequence.finish_reason == "length"


def test_prompts_are_read_together_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "READ_AT_ONCE", 20)
    sampling, one = SAMPLINGS["greedy"], engine(8)
    lengths = {0: 15, 1: 5, 2: 1, 3: 30, 4: 4, 5: 15}
    asked = {slot: np.random.default_rng(n).integers(12, 300, n).tolist() for slot, n in lengths.items()}
    held = {slot: TokenSequence(ids, sampling, max_new_tokens=4, max_len=64) for slot, ids in asked.items()}
    step(one, held)
    assert [call for call in one.calls if call[0] == "extend"] == [
        ("extend", 2),
        ("extend", 1),
        ("extend", 1),
        ("extend", 1),
    ]
    assert one.count("prefill") == 0 and one.count("copy") == 1  # that of slot 0
    for slot, ids in asked.items():
        assert held[slot].new_ids == list(generate(engine(), 0, ids, sampling, max_new_tokens=1))


@pytest.mark.parametrize("after", [0, 2])
def test_a_step_that_was_interrupted_can_be_taken_again(after: int) -> None:
    interrupted, sampling = engine(2), SAMPLINGS["sampled"]
    held = {
        slot: TokenSequence(prompt, sampling, max_new_tokens=8, max_len=64) for slot, prompt in enumerate(prompts(2))
    }
    interrupted.fail_in = after
    stops = 0
    while any(each.finish_reason is None for each in held.values()):
        try:
            step(interrupted, held)
        except KeyboardInterrupt:  # what was decoded lies in the cache, and no id came of it
            stops += 1
    assert stops == 1
    for slot, prompt in enumerate(prompts(2)):
        assert held[slot].new_ids == list(generate(engine(), 0, prompt, sampling, max_new_tokens=8))


def test_ids_that_came_from_elsewhere_are_read_at_once() -> None:
    """A sequence whose slot lacks several of its ids, as after an accepted draft."""
    one, sampling = engine(), SAMPLINGS["greedy"]
    sequence = TokenSequence(prompts()[3], sampling, max_new_tokens=12, max_len=64)
    expected = list(generate(engine(), 0, prompts()[3], sampling, max_new_tokens=12))
    step(one, {0: sequence})
    for id in expected[1:4]:
        sequence.append(id)
    while sequence.finish_reason is None:
        step(one, {0: sequence})
    assert sequence.new_ids == expected
    assert [call for call in one.calls if call[0] == "prefill"] == [("prefill", len(prompts()[3])), ("prefill", 4)]


def test_sequences_are_taken_only_as_slots_become_free() -> None:
    taken: list[int] = []

    def sequences() -> Any:
        for number, prompt in enumerate(prompts(6)):
            taken.append(number)
            yield number, TokenSequence(prompt, SAMPLINGS["greedy"], max_new_tokens=3 + number, max_len=64)

    ended = []
    for number, sequence in run_sequences(engine(2), sequences()):
        ended.append(number)
        assert len(taken) <= len(ended) + 1
        assert sequence.tokens == 3 + number
    assert sorted(ended) == taken == list(range(6))


def test_sequences_that_are_left_move_together() -> None:
    lengths = [30, 4, 9, 25, 6, 14, 3, 40, 12]
    one = engine(6)
    sequences = [
        (number, TokenSequence(prompt, SAMPLINGS["sampled"], max_new_tokens=lengths[number], max_len=64))
        for number, prompt in enumerate(prompts(9))
    ]
    for number, sequence in run_sequences(one, iter(sequences)):
        expected = generate(engine(), 0, prompts(9)[number], SAMPLINGS["sampled"], max_new_tokens=lengths[number])
        assert sequence.new_ids == list(expected)
    left = [slots for slots in one.decoded if len(slots) < 5]
    assert left == [list(range(len(slots))) for slots in left]
    assert {len(slots) for slots in left} == {1, 2, 3, 4}


def test_prompts_that_fill_the_context_come_back_empty() -> None:
    long = [[13] * 20, [13] * 5, [13] * 19]
    batch = by_place(generate_batch(engine(2, max_len=20), long, SAMPLINGS["greedy"], max_new_tokens=30, n=2))
    assert [(batch[0, i].ids, batch[0, i].finish_reason) for i in range(2)] == [([], "context")] * 2
    assert batch[2, 0].finish_reason == "context" and len(batch[2, 0].ids) == 1
    assert len(batch[1, 1].ids) == 15


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="n = 0"):
        list(generate_batch(engine(), [[1]], SAMPLINGS["greedy"], max_new_tokens=3, n=0))
    with pytest.raises(UserError, match="the prompt has no tokens"):
        list(generate_batch(engine(), [[]], SAMPLINGS["greedy"], max_new_tokens=3))
