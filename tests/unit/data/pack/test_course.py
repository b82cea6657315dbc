"""Shares that change over a training: whose rows each step has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmcli.data.config import DataConfig
from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batches
from mmcli.data.pack.course import Course
from mmcli.data.pack.packing import pack_cache
from mmcli.data.pack.selection import Selection
from mmcli.data.sources.source import Weight, split_weight
from mmcli.data.sources.sources import open_data, open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer

Mix = Callable[..., TokenCache]
STEPS, BATCH = 50, 8


@pytest.fixture
def mix(tmp_path: Path, tokenizer: Tokenizer) -> Mix:
    """A cache of a.jsonl and b.jsonl, whose weights these are."""

    def build(a: str, b: str) -> TokenCache:
        names = []
        for name, weight, text in (("a", a, "the quick fox number"), ("b", b, "a lazy dog number")):
            path = tmp_path / f"{name}.jsonl"
            path.write_text(
                "".join(json.dumps({"text": f"{text} {n} " + "jumps " * (n % 7)}) + "\n" for n in range(900))
            )
            names.append(f"{path}:{weight}")
        return TokenCache.build_or_open(tmp_path / "cache", open_sources(names), tokenizer)

    return build


def batches(cache: TokenCache, steps: int, *, seed: int = 3) -> Batches:
    rows = pack_cache(cache, 64, selection=Selection.whole(cache).mixed(cache, seed), seed=seed)
    made = Batches(cache, rows, batch_size=BATCH, micro_batch=4, seed=seed)
    made.plan(steps)
    return made


def places(course: Course, most: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.array([place for first in range(0, most, BATCH) for place in course.places(first, BATCH)])
    return found[:, 0], found[:, 1]


@pytest.mark.parametrize(
    "shares", [((0.8, 0.3), (0.2, 0.7)), ((1.0, 0.0), (0.0, 1.0)), ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5))]
)
def test_each_stretch_has_the_shares_of_its_moment(shares: tuple[tuple[float, float], ...]) -> None:
    total = STEPS * BATCH
    counts = tuple(round(total * (start + end) / 2) for start, end in shares)
    sources, numbers = places(Course(counts, shares, total), total)
    for source, (start, end) in enumerate(shares):
        assert numbers[sources == source].tolist() == list(range(counts[source]))  # all of them, in turn, once
        for first in range(0, total, total // 5):
            middle = (first + total / 10) / total
            expected = (start + (end - start) * middle) * total / 5
            assert (sources[first : first + total // 5] == source).sum() == pytest.approx(expected, abs=2)


def test_what_follows_the_end_has_the_last_shares() -> None:
    course = Course((220, 180), ((0.8, 0.3), (0.2, 0.7)), 400)
    sources, _ = places(course, 1200)
    assert (sources[400:] == 0).mean() == pytest.approx(0.3, abs=0.01)
    ended = Course((200, 200), ((1.0, 0.0), (0.0, 1.0)), 400)
    assert set(places(ended, 800)[0][400:].tolist()) == {1}


def test_the_places_do_not_depend_on_how_they_are_asked_for() -> None:
    course = Course((1100, 900), ((0.8, 0.3), (0.2, 0.7)), 2000)
    whole = course.places(0, 2000)
    for first in (0, 7, 993, 1990):
        assert course.places(first, 10) == whole[first : first + 10]


def test_an_epoch_reads_every_row_once_with_shares_that_move(mix: Mix) -> None:
    cache = mix("0.9..0.1", "0.1..0.9")
    rows = pack_cache(cache, 64, selection=Selection.whole(cache).mixed(cache, 3), seed=3)
    assert sum(rows.by_source) == len(rows) and all(rows.by_source)
    source_of = np.repeat([0, 1], rows.by_source)
    for row in range(len(rows)):  # no row has pieces of both
        assert {int(document >= 900) for document, _, _ in rows.pieces(row)} == {source_of[row]}
    steps = len(rows) // BATCH
    made = batches(cache, steps)
    read = np.concatenate([made.row_numbers(step) for step in range(steps)])
    assert len(set(read.tolist())) == steps * BATCH
    assert source_of[read[: BATCH * 2]].mean() < 0.25 and source_of[read[-BATCH * 2 :]].mean() > 0.75


def test_a_step_is_a_function_of_seed_and_number(mix: Mix) -> None:
    cache = mix("0.8..0.3", "0.2..0.7")
    one, other = batches(cache, STEPS), batches(cache, STEPS)
    forward = [one.row_numbers(step).tolist() for step in range(STEPS)]
    backward = [other.row_numbers(step).tolist() for step in reversed(range(STEPS))][::-1]
    assert forward == backward
    assert batches(cache, STEPS, seed=4).row_numbers(5).tolist() != forward[5]
    more = Counter(row for step in range(STEPS) for row in one.row_numbers(step))
    assert max(more.values()) - min(more.values()) <= 1  # several epochs: every row as often as the others


def test_equal_ends_are_a_plain_mixture(mix: Mix) -> None:
    plain, same = mix("0.6", "0.4"), mix("0.6..0.6", "0.4..0.4")
    assert plain.course is None and same.course is None and plain.mixture == same.mixture
    assert batches(plain, STEPS).row_numbers(4).tolist() == batches(same, STEPS).row_numbers(4).tolist()


def test_the_account_says_how_much_and_from_where_to_where(mix: Mix) -> None:
    cache = mix("0.9..0.1", "0.1..0.9")
    line = Selection.whole(cache).mixed(cache).describe_mixture(cache)
    assert line is not None and "from 90.0% to 10.0%" in line and "from 10.0% to 90.0%" in line
    assert "from 90.0% to 10.0%" in open_sources(["demo:0.9..0.1", "demo:0.1..0.9"]).describe


def test_the_weight_is_read_and_wrong_ones_are_refused() -> None:
    assert split_weight("demo:0.8..0.3") == ("demo", Weight(0.8, 0.3))
    assert split_weight("demo:1..0")[1] == Weight(1.0, 0.0)
    assert str(Weight(0.8, 0.3)) == "0.8..0.3" and str(Weight(0.5, 0.5)) == "0.5"
    for wrong in ("demo:0..0", "demo:-1..1", "demo:0.5..-1", "demo:1..1e999"):
        with pytest.raises(UserError, match="is not above 0"):
            split_weight(wrong)
    with pytest.raises(UserError, match="at the end every weight is 0"):
        open_sources(["demo:0.8..0", "demo:0.2..0"])


def test_a_stage_without_an_order_of_steps_refuses_weights_that_change() -> None:
    changing = ("demo:0.8..0.3", "demo:0.2..0.7")
    with pytest.raises(UserError, match=r"demo has the weight 0\.8\.\.0\.3"):
        open_data("text", DataConfig(sources=changing))
    with pytest.raises(UserError, match="--val"):
        open_data("text", DataConfig(sources=("demo",), val=changing), course=True)
    assert open_data("text", DataConfig(sources=changing), course=True).train.course is not None
