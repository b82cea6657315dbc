"""The one loop from a prompt to new ids: why it ends, what it keeps, what it measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmcli.errors import UserError
from mmcli.generate.engine import PromptTooLong, common_prefix
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig

Make = Callable[..., Any]
GREEDY = SamplingConfig(temperature=0)
STOP = 2


def test_it_ends_at_a_stop_id_which_is_kept_but_not_yielded(scripted: Make) -> None:
    engine = scripted([50, 51, 52, STOP], end=False)
    generation = generate(engine, 0, [7, 8], GREEDY, max_new_tokens=10, stop_ids={STOP})
    assert generation.finish_reason is None
    assert list(generation) == [50, 51, 52]
    assert generation.finish_reason == "stop"
    assert generation.sequence.ids == [7, 8, 50, 51, 52, STOP]
    assert engine.held[0] == [7, 8, 50, 51, 52]
    assert next(generation, None) is None


def test_it_ends_after_max_new_tokens(scripted: Make) -> None:
    generation = generate(scripted(range(50, 90)), 0, [7], GREEDY, max_new_tokens=3, stop_ids={STOP})
    assert list(generation) == [50, 51, 52]
    assert (generation.finish_reason, generation.sequence.tokens, generation.decoded) == ("length", 3, 2)


@pytest.mark.parametrize(("max_new_tokens", "reason"), [(99, "context"), (7, "context"), (6, "length")])
def test_it_ends_where_the_context_is_full(scripted: Make, max_new_tokens: int, reason: str) -> None:
    engine = scripted(range(50, 90), max_len=10)
    generation = generate(engine, 0, [7, 8, 9, 10], GREEDY, max_new_tokens=max_new_tokens, stop_ids={STOP})
    assert list(generation) == [50, 51, 52, 53, 54, 55]
    assert generation.finish_reason == reason
    assert len(generation.sequence.ids) == engine.max_len


def test_a_prompt_that_leaves_no_place_is_refused(scripted: Make) -> None:
    engine = scripted([50], max_len=10)
    for length in (10, 25):
        with pytest.raises(PromptTooLong, match=f"the prompt has {length} tokens, the context holds 10") as caught:
            generate(engine, 0, [7] * length, GREEDY, max_new_tokens=5)
        assert "shorten the prompt" in caught.value.fix
    assert engine.prefills == []


def test_no_prompt_and_no_reply_are_refused(scripted: Make) -> None:
    with pytest.raises(UserError, match="the prompt has no tokens"):
        generate(scripted([50]), 0, [], GREEDY, max_new_tokens=5)
    with pytest.raises(UserError, match="max_new_tokens = 0"):
        generate(scripted([50]), 0, [1], GREEDY, max_new_tokens=0)


@pytest.mark.parametrize(("cached", "run"), [(0, 5), (3, 2), (4, 1), (5, 1)])
def test_only_what_the_slot_lacks_is_run(scripted: Make, cached: int, run: int) -> None:
    prompt = [7, 8, 9, 10, 11]
    engine = scripted([50], [60])
    engine.prefill(0, [*prompt[:cached], 99])  # the last one belongs to something else
    generation = generate(engine, 0, prompt, GREEDY, max_new_tokens=5, stop_ids={STOP}, cached=cached)
    assert list(generation) == [60]
    assert engine.prefills[-1] == run
    assert engine.held[0] == [*prompt, 60]
    assert generation.sequence.reused_tokens == 5 - run


def test_work_is_done_only_when_an_id_is_asked_for(scripted: Make) -> None:
    engine = scripted(range(50, 60))
    generation = generate(engine, 0, [7], GREEDY, max_new_tokens=5)
    assert engine.prefills == []
    assert [next(generation), next(generation)] == [50, 51]
    assert engine.held[0] == [7, 50]


def test_the_repetition_penalty_sees_prompt_and_reply_but_no_stop_ids(scripted: Make) -> None:
    engine = scripted([])
    # 10 was in the prompt, 11 comes first; STOP was in the prompt too, but to end a turn is no repetition.
    logits_V = np.zeros(engine.vocab_size, dtype=np.float32)
    logits_V[[10, 11, 12, STOP]] = [5.0, 4.9, 4.8, 4.7]
    engine.prefill = lambda slot, ids: logits_V
    engine.decode = lambda slots, ids: logits_V[None]
    sampling = SamplingConfig(temperature=0, repetition_penalty=1.2)
    generation = generate(engine, 0, [STOP, 10], sampling, max_new_tokens=9, stop_ids={STOP})
    assert list(generation) == [11, 12]
    assert generation.finish_reason == "stop"


def test_the_speed_is_that_of_decoding(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(range(50, 60), end=False)
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def takes(seconds: float, call: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def run(*arguments: object) -> np.ndarray:
            clock[0] += seconds
            return call(*arguments)

        return run

    engine.prefill, engine.decode = takes(3.0, engine.prefill), takes(0.25, engine.decode)
    generation = generate(engine, 0, [7], GREEDY, max_new_tokens=5)
    assert generation.tokens_per_second is None
    for _ in generation:
        clock[0] += 10  # the caller's own time does not count
    assert generation.prefill_seconds == 3.0
    assert generation.decode_seconds == 1.0
    assert generation.tokens_per_second == 4.0


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4, 3]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == common_prefix([1, 2, 3], [1, 2]) == 2
