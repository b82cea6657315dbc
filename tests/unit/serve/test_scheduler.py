"""The scheduler and its slots, without HTTP: chunked prompts, shared beginnings, order, stop strings, readers."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from itertools import pairwise
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
from mmcli.serve.scheduler import CHUNK, Finished, Job, Scheduler
from mmcli.serve.slots import Slots
from mmcli.serve.stops import StopStrings
from mmcli.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(temperature=0, repetition_penalty=1)


class Logged(TorchEngine):
    """A torch engine that keeps its calls: ("prefill", tokens) and ("decode", slots)."""

    def __init__(self, vocab_size: int, slots: int) -> None:
        config = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=vocab_size, max_seq_len=2000)
        super().__init__(Transformer(config, seed=1), slots=slots)
        self.calls: list[tuple[str, int]] = []

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        self.calls.append(("prefill", len(ids)))
        return super().prefill(slot, ids)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        self.calls.append(("decode", len(slots)))
        return super().decode(slots, ids)


def sequence(ids: Sequence[int], count: int = 5) -> TokenSequence:
    return TokenSequence(ids, GREEDY, max_new_tokens=count, max_len=2000)


def test_a_long_prompt_is_read_between_the_tokens_of_others(tokenizer: Tokenizer) -> None:
    engine = Logged(tokenizer.vocab_size, 2)
    scheduler = Scheduler(engine, queue=8, metrics=ModelMetrics())
    events: queue.Queue[Any] = queue.Queue()
    long = [5] * (6 * CHUNK)
    short = Job(sequence([7, 8], 1900), TextReader(tokenizer), events.put)
    scheduler.submit([short])
    while ("decode", 1) not in engine.calls:
        time.sleep(0.001)
    late = Job(sequence(long, 3), TextReader(tokenizer), lambda event: events.put((event,)))
    scheduler.submit([late])
    while not (isinstance(event := events.get(timeout=5), tuple) and isinstance(event[0], Finished)):
        pass
    scheduler.cancel([short])
    scheduler.drain(1)
    reads = [at for at, call in enumerate(engine.calls) if call == ("prefill", CHUNK)]
    assert len(reads) == 6
    between = [engine.calls[one + 1 : other] for one, other in pairwise(reads)]
    assert between == [[("decode", 1)]] * 5


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
    assert [call for call in engine.calls if call[0] == "prefill"] == [("prefill", 60)]
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
