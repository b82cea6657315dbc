"""The scheduler and its slots, without HTTP: chunked prompts, shared beginnings, order, stop strings, readers."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.serve.metrics import BOUNDS, Histogram, ModelMetrics, Requests, exposition
from mmcli.serve.reader import ChatReader, TextReader
from mmcli.serve.scheduler import (
    FIRST_BUDGET,
    MOST_BUDGET,
    READ_SECONDS,
    TOGETHER,
    Finished,
    Job,
    ReadBudget,
    Scheduler,
)
from mmcli.serve.slots import Slots
from mmcli.serve.stops import StopStrings
from mmcli.text.tokenizer import Tokenizer

from ..conftest import TOOLLESS

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)


class Logged(TorchEngine):
    """A torch engine that keeps its passes: of each the number of ids for each slot."""

    def __init__(self, vocab_size: int, slots: int) -> None:
        config = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=vocab_size, max_seq_len=2000)
        super().__init__(Transformer(config, seed=1), slots=slots)
        self.passes: list[list[int]] = []

    def extend(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        self.passes.append([len(row) for row in ids])
        return super().extend(slots, ids)


def sequence(ids: Sequence[int], count: int = 5) -> TokenSequence:
    return TokenSequence(ids, GREEDY, max_new_tokens=count, max_len=2000)


def jobs_of(tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], count: int) -> list[Job]:
    return [Job(sequence(ids, count), TextReader(tokenizer), lambda event: None) for ids in prompts]


def test_a_long_prompt_is_read_between_the_tokens_of_others(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadBudget, "learn", lambda *args: None)
    engine = Logged(tokenizer.vocab_size, 2)
    scheduler = Scheduler(engine, queue=8, metrics=ModelMetrics())
    events: queue.Queue[Any] = queue.Queue()
    short = Job(sequence([7, 8], 1900), TextReader(tokenizer), events.put)
    scheduler.submit([short])
    while [1] not in engine.passes:
        time.sleep(0.001)
    late = Job(sequence([5] * (6 * FIRST_BUDGET), 3), TextReader(tokenizer), lambda event: events.put((event,)))
    scheduler.submit([late])
    while not (isinstance(event := events.get(timeout=5), tuple) and isinstance(event[0], Finished)):
        pass
    scheduler.cancel([short])
    scheduler.drain(1)
    first = engine.passes.index([FIRST_BUDGET])
    assert engine.passes[first : first + 13] == [[FIRST_BUDGET], [1]] * 5 + [[FIRST_BUDGET], [1, 1], [1, 1]]


def test_first_tokens_come_before_the_next_ones_of_others(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadBudget, "learn", lambda *args: None)
    engine = Logged(tokenizer.vocab_size, 5)
    scheduler = Scheduler(engine, queue=8, metrics=ModelMetrics())
    (writing,) = jobs_of(tokenizer, [[7, 8]], 1900)
    scheduler.submit([writing])
    while [1] not in engine.passes:
        time.sleep(0.001)
    some, few = FIRST_BUDGET // 2 - 1, int(FIRST_BUDGET * TOGETHER) // 2
    late = jobs_of(tokenizer, [[6] * some, [4] * some, [3] * few, [2] * few], 3)
    scheduler.submit(late)
    while scheduler.busy > 1 or not late[-1].taken:
        time.sleep(0.001)
    scheduler.cancel([writing])
    scheduler.drain(1)
    first = engine.passes.index([some])
    assert engine.passes[first : first + 4] == [[some], [some], [1, 1, 1], [few, few]]
    assert engine.passes[first + 4] == [1, 1, 1, 1, 1]


def test_a_long_prompt_lets_the_others_by(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadBudget, "learn", lambda *args: None)
    engine = Logged(tokenizer.vocab_size, 3)
    scheduler = Scheduler(engine, queue=8, metrics=ModelMetrics())
    long, some = [5] * (2 * FIRST_BUDGET + 10), FIRST_BUDGET // 2
    scheduler.submit(jobs_of(tokenizer, [long, [6] * some, [7] * some], 2))
    scheduler.drain(5)
    assert engine.passes[:4] == [[FIRST_BUDGET], [some], [some], [1, 1]]


def test_the_budget_follows_the_speed_of_the_machine() -> None:
    budget = ReadBudget()
    budget.learn(5, 10.0)  # a step of little but other replies' tokens says nothing
    assert budget.tokens == FIRST_BUDGET
    budget.learn(100, READ_SECONDS / 10)
    assert budget.tokens == 1000
    for _ in range(50):
        budget.learn(100, READ_SECONDS * 2)
    assert 50 <= budget.tokens < 60
    budget.learn(10_000, 0.001)
    assert budget.tokens == MOST_BUDGET


def test_the_slot_with_the_longest_common_beginning_is_taken(tokenizer: Tokenizer) -> None:
    engine = Logged(tokenizer.vocab_size, 3)
    slots = Slots(engine)
    talks = [[1, 2, 3, *range(10 * n, 10 * n + 30)] for n in range(1, 4)]
    for talk in talks:
        slot = slots.take(sequence(talk))
        engine.prefill(slot, slots.held[slot].ids[slots.held[slot].reused_tokens :])
    for slot in range(3):
        slots.release(slot)
    following = sequence([*talks[1], 7, 7])
    assert (slots.take(following), following.reused_tokens) == (1, len(talks[1]))
    assert engine.length(1) == len(talks[1])
    other = sequence([99, 98])  # nothing in common: the one that was left alone the longest
    assert (slots.take(other), other.reused_tokens) == (0, 0)


def test_a_beginning_in_a_busy_slot_is_copied(tokenizer: Tokenizer) -> None:
    engine = Logged(tokenizer.vocab_size, 2)
    slots = Slots(engine)
    system = list(range(1, 41))
    engine.prefill(slots.take(sequence([*system, 50])), [*system, 50])
    second = sequence([*system, 60, 61])
    slot = slots.take(second)
    assert (slot, second.reused_tokens, engine.length(slot)) == (1, 40, 40)
    expected = engine.prefill(slot, [60, 61])
    slots.release(0)
    assert np.allclose(TorchEngine(engine.model).prefill(0, [*system, 60, 61]), expected, atol=1e-5)


def test_the_prompt_of_twins_is_read_once(tokenizer: Tokenizer) -> None:
    engine = Logged(tokenizer.vocab_size, 4)
    scheduler = Scheduler(engine, queue=8, metrics=ModelMetrics())
    events: queue.Queue[Any] = queue.Queue()
    prompt = [9] * 60
    first = Job(sequence(prompt, 4), TextReader(tokenizer), events.put)
    twins = [Job(sequence(prompt, 4), TextReader(tokenizer), events.put, twin=first) for _ in range(3)]
    scheduler.submit([first, *twins])
    scheduler.drain(5)
    assert [each for each in engine.passes if max(each) > 1] == [[60]]
    assert {tuple(job.sequence.new_ids) for job in (first, *twins)} == {tuple(first.sequence.new_ids)}


@pytest.mark.parametrize(
    ("pieces", "shown", "rest"),
    [
        (["abc", "def"], ["abc", "def"], ""),
        (["ab<", "en", "d>x"], ["ab", "", ""], ""),
        (["ab<", "e", "x"], ["ab", "", "<ex"], ""),
        (["<<", "end>"], ["<", ""], ""),
        (["a<en"], ["a"], "<en"),
        (["a", "STOP<end>"], ["a", ""], ""),
    ],
)
def test_stop_strings_in_pieces(pieces: list[str], shown: list[str], rest: str) -> None:
    stops = StopStrings(["<end>", "STOP"])
    assert [stops.push(piece) for piece in pieces] == shown
    assert stops.found == ("end>" in "".join(pieces) or "STOP" in "".join(pieces) or "d>x" in pieces)
    assert stops.flush() == rest


def test_a_prompt_may_open_the_reasoning(tokenizer: Tokenizer) -> None:
    think, end = tokenizer.control_id("<think>"), tokenizer.control_id("</think>")
    assert think is not None and end is not None
    reader = ChatReader(tokenizer, prompt_ids=[5, think])
    deltas = [reader.push(id) for id in [*tokenizer.encode_text("\nrain\n"), end, *tokenizer.encode_text("\n\nhills")]]
    assert "".join(delta.reasoning for delta in deltas) == "rain"
    assert "".join(delta.content for delta in deltas) + reader.finish().content == "hills"


@pytest.mark.parametrize("tools", [True, False])
def test_the_marks_of_a_call_are_text_where_there_are_no_tokens_for_them(toolless: Tokenizer, tools: bool) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    reader = ChatReader(toolless, tools=tools)
    deltas = [reader.push(id) for id in toolless.encode_text(f"Well {call} so <b> <tool")]
    deltas.append(reader.finish())
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.calls]
    content = "".join(delta.content for delta in deltas)
    assert calls == ([("add", '{"a": 2}')] if tools else []) and reader.called == tools
    assert content == ("Well  so <b> <tool" if tools else f"Well {call} so <b> <tool")


def test_a_forced_call_may_hold_the_mark_of_its_end(toolless: Tokenizer) -> None:
    reader = ChatReader(toolless, tools=True, begun=True)
    arguments = '{"text": "close it by </tool_call> please"}'
    ids = toolless.encode_text(f'{{"name": "add", "arguments": {arguments}}}')
    deltas = [*(reader.push(id) for id in ids), reader.finish()]
    assert [call.arguments for delta in deltas for call in delta.calls] == [arguments]


def test_what_may_be_a_mark_is_shown_before_a_control_token(toolless: Tokenizer) -> None:
    think, end = toolless.control_id("<think>"), toolless.control_id("</think>")
    assert think is not None and end is not None
    reader = ChatReader(toolless, tools=True)
    ids = [think, *toolless.encode_text("is a <tool"), end, *toolless.encode_text("_call>Yes.")]
    deltas = [*(reader.push(id) for id in ids), reader.finish()]
    assert "".join(delta.reasoning for delta in deltas) == "is a <tool"
    assert "".join(delta.content for delta in deltas) == "_call>Yes." and not reader.called


def test_calls_are_text_where_the_template_knows_no_tools(templated: Callable[..., Tokenizer]) -> None:
    """Also where the tokenizer has tokens for them: the prompt describes calls as text."""
    tokenizer = templated(TOOLLESS)
    reader = ChatReader(tokenizer, tools=True)
    ids = tokenizer.encode_text('<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>')
    deltas = [*(reader.push(id) for id in ids), reader.finish()]
    assert [call.name for delta in deltas for call in delta.calls] == ["add"]


def test_metrics_are_prometheus_text() -> None:
    histogram = Histogram()
    for seconds in (0.01, 0.2, 500):
        histogram.observe(seconds)
    lines = list(histogram.lines("x", 'model="m"'))
    assert lines[0] == 'x_bucket{model="m",le="0.01"} 1' and lines[len(BOUNDS)] == 'x_bucket{model="m",le="+Inf"} 3'
    requests = Requests()
    requests.count("/a", 200)
    text = exposition(requests, {'q"\\': ModelMetrics(steps=3)}, {'q"\\': {"slots": 1, "busy": 0, "waiting": 0}})
    assert 'mmcli_decode_steps_total{model="q\\"\\\\"} 3' in text and text.endswith("\n")
