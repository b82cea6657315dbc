"""The sampler: the same masks and probabilities as transformers, reproducible draws, true frequencies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmcli.errors import MmcliError, UserError
from mmcli.generate.sampler import BLOCK, SamplingConfig, _draw, _kth_largest, distribution, sample, sample_one, uniform

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def random_logits(seed: int, vocab: int = 6400, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)


def draw(config: SamplingConfig, logits_V: np.ndarray, seen: Any, position: int) -> int:
    """The next id of one sequence alone."""
    return int(sample(logits_V[None], [config], [seen], [position])[0])


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_alone_is_the_one_of_a_batch(temperature: float, penalty: float) -> None:
    config = SamplingConfig(temperature=temperature, repetition_penalty=penalty, seed=3)
    allowed_V = np.arange(6400) % 3 == 0
    for position in range(20):
        logits_V, seen = random_logits(position), [int(random_logits(position).argmax()), 5]
        for allowed in (None, allowed_V):
            batch = sample(np.stack([logits_V] * 2), [config] * 2, [seen] * 2, [position] * 2, [allowed] * 2)
            assert batch.tolist() == [sample_one(logits_V, config, seen, position, allowed)] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_alone_refuses_what_is_not_finite(bad: float) -> None:
    logits_V = random_logits(1)
    logits_V[77] = bad
    with pytest.raises(MmcliError, match=r"position 9 are not finite \(token 77: "):
        sample_one(logits_V, SamplingConfig(temperature=0, repetition_penalty=1), [], 9)


def transformers_probs(config: SamplingConfig, logits_V: np.ndarray, seen: list[int]) -> np.ndarray:
    """What `GenerationMixin` samples from, its processors in its order."""
    steps = LogitsProcessorList()
    if config.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(MinPLogitsWarper(config.min_p))
    scores = steps(torch.tensor([seen]), torch.tensor(logits_V)[None])
    return torch.softmax(scores[0].double(), dim=-1).numpy()


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.5},
    {"top_p": 0.999, "temperature": 3.0},  # a nucleus wider than the first guess
    {"min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "top_k": 20},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.05},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [17, 6400])
def test_masks_and_probabilities_are_those_of_transformers(setting: dict[str, float], vocab: int) -> None:
    config = SamplingConfig(**{**OFF, **setting})
    for seed in range(5):
        logits = random_logits(seed, vocab)
        seen = np.random.default_rng(seed).integers(0, vocab, 300).tolist()
        expected = transformers_probs(config, logits, seen)
        ids, probs = distribution(config, logits, seen)
        assert ids.tolist() == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(probs, expected[ids], rtol=2e-5, atol=1e-9)
        assert probs.sum() == pytest.approx(1.0, abs=1e-12)


def test_temperature_zero_is_the_most_likely_token_after_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 2.9, -1.0], dtype=np.float32)
    assert draw(SamplingConfig(**{**OFF, "temperature": 0}), logits, [1], 0) == 1
    assert draw(SamplingConfig(**{**OFF, "temperature": 0, "repetition_penalty": 1.1}), logits, [1, 1], 0) == 2


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
def test_tiny_temperatures_are_greedy_and_quiet(temperature: float) -> None:
    logits = random_logits(3)
    with np.errstate(all="raise", under="ignore"):
        for position in range(20):
            config = SamplingConfig(**{**OFF, "temperature": temperature})
            assert draw(config, logits, [], position) == logits.argmax()


def test_ties_are_all_kept() -> None:
    logits = np.array([0.0, 2.0, 2.0, 2.0, -5.0], dtype=np.float32)
    for setting in ({"top_k": 1}, {"top_p": 0.1}):
        ids, probs = distribution(SamplingConfig(**{**OFF, **setting}), logits, [])
        assert ids.tolist() == [1, 2, 3]
        np.testing.assert_allclose(probs, 1 / 3)


def test_the_input_is_left_alone() -> None:
    logits = random_logits(1)
    before = logits.copy()
    draw(SamplingConfig(repetition_penalty=1.5), logits, list(range(100)), 3)
    assert (logits == before).all()


@pytest.mark.parametrize("setting", [{}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.5}], ids=str)
def test_draws_have_the_frequencies_of_the_distribution(setting: dict[str, float]) -> None:
    """Chi-square over 20,000 draws; the seed is fixed, so the statistic is too."""
    logits = random_logits(11, vocab=12, spread=1.0)
    config = SamplingConfig(**{**OFF, "seed": 42, **setting})
    ids, probs = distribution(config, logits, [])
    draws = 20_000
    counts = np.bincount([draw(config, logits, [], position) for position in range(draws)], minlength=12)
    assert counts.sum() == counts[ids].sum()
    expected = probs * draws
    chi_square = float(((counts[ids] - expected) ** 2 / expected).sum())
    degrees = len(ids) - 1
    assert chi_square < degrees + 3.3 * math.sqrt(2 * degrees)  # about the 99.9th percentile


def test_uniform_is_uniform_over_positions_and_seeds() -> None:
    for draws in (
        [uniform(7, position) for position in range(10_000)],
        [uniform(seed, 5) for seed in range(10_000)],
    ):
        counts, _ = np.histogram(draws, bins=50, range=(0, 1))
        chi_square = float(((counts - 200) ** 2 / 200).sum())
        assert 20 < chi_square < 86  # 0.01 % on each side, 49 degrees
        assert min(draws) >= 0 and max(draws) < 1
    pairs = np.array([[uniform(seed, position) for position in range(2000)] for seed in (0, 1)])
    assert abs(np.corrcoef(pairs)[0, 1]) < 0.08
    assert abs(np.corrcoef(pairs[0, :-1], pairs[0, 1:])[0, 1]) < 0.08


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63, 2**64 - 1])
def test_uniform_is_numpys_philox(seed: int) -> None:
    for position in (0, 1, 2, 999, 2**40):
        bits = int(np.random.Philox(key=seed, counter=position).random_raw())
        assert uniform(seed, position) == (bits >> 11) * 2.0**-53


def test_randomness_is_keyed_by_seed_and_position_alone() -> None:
    rows = [random_logits(seed, vocab=100, spread=1.0) for seed in range(3)]
    config = SamplingConfig(**{**OFF, "seed": 5})
    alone = [[draw(config, row, [], position) for position in range(30)] for row in rows]
    logits_SV = np.stack(rows)
    together = [sample(logits_SV, [config] * 3, [[]] * 3, [position] * 3).tolist() for position in reversed(range(30))]
    assert [list(column) for column in zip(*reversed(together), strict=True)] == alone
    other = [draw(SamplingConfig(**{**OFF, "seed": 6}), rows[0], [], position) for position in range(30)]
    assert other != alone[0]


MIXED = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 40, "top_p": 0.9, "seed": 7},
    {"top_p": 0.95},
    {"top_p": 0.95, "seed": 3},
    {"min_p": 0.1, "temperature": 1.5},
    {},
]


@pytest.mark.parametrize("vocab", [17, 6400])
@pytest.mark.parametrize("settings", [MIXED, [{"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2}] * 8], ids=len)
def test_a_row_does_not_depend_on_the_others(settings: list[dict[str, float]], vocab: int) -> None:
    """Rows of other configs, other candidates (ties, so that counts differ), other seen ids and positions."""
    configs = [SamplingConfig(**{**OFF, "seed": row, **setting}) for row, setting in enumerate(settings)]
    for turn in range(40):
        logits_SV = np.stack([random_logits(100 * turn + row, vocab, spread=0.5 + row) for row in range(8)])
        logits_SV[turn % 8] = np.round(logits_SV[turn % 8])  # many ties: more candidates than top-k
        seen = [np.random.default_rng(row).integers(0, vocab, 20 * row) for row in range(8)]
        positions = [turn + 10 * row for row in range(8)]
        together = sample(logits_SV, configs, seen, positions).tolist()
        assert together == [draw(*each) for each in zip(configs, logits_SV, seen, positions, strict=True)]
        order = np.random.default_rng(turn).permutation(8)[:5]
        some = sample(logits_SV[order], *([values[row] for row in order] for values in (configs, seen, positions)))
        assert some.tolist() == [together[row] for row in order]


def test_the_numbers_stay_those_of_earlier_versions() -> None:
    """Ids that were drawn when rows were still drawn one by one: a seed gives the same reply for good."""
    logits = random_logits(4)
    drawn = [draw(SamplingConfig(seed=3, temperature=1.0), logits, [5, 9], position) for position in range(12)]
    assert drawn == [5652, 4641, 2620, 5652, 5645, 4831, 2620, 2828, 2828, 4556, 3339, 2395]


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("vocab", [4 * BLOCK + 1, 6400, 6401])
def test_draws_that_float32_cannot_tell_apart_are_those_of_float64(vocab: int, spread: float) -> None:
    """Draws a hair before, at and after the cumulated weight of an id, and anywhere."""
    scores_SV = np.stack([random_logits(seed, vocab, spread) for seed in range(8)])
    scores_SV -= scores_SV.max(axis=1, keepdims=True)
    scores_SV[3, ::2] = scores_SV[4, 1:] = -np.inf
    cumulated_SV = np.exp(scores_SV.astype(np.float64)).cumsum(axis=1)
    places = np.random.default_rng(1).integers(0, vocab, (8, 12))
    for near in (-1e-6, -1e-9, -1e-12, 0.0, 1e-12, 1e-9, 1e-6, None):
        for n, place_S in enumerate(places.T):
            share_S = cumulated_SV[np.arange(8), place_S] / cumulated_SV[:, -1]
            share_S = np.random.default_rng(n).random(8) if near is None else np.clip(share_S + near, 0, 1 - 2**-53)
            drawn_S1 = np.minimum(share_S * cumulated_SV[:, -1], np.nextafter(cumulated_SV[:, -1], 0))[:, None]
            assert _draw(scores_SV, share_S).tolist() == (cumulated_SV > drawn_S1).argmax(axis=1).tolist()


def test_a_row_that_is_not_finite_is_named() -> None:
    logits_SV = np.stack([random_logits(0), random_logits(1)])
    logits_SV[1, 8] = math.nan
    with pytest.raises(MmcliError, match=r"position 6 are not finite \(token 8: nan\)"):
        sample(logits_SV, [SamplingConfig()] * 2, [[], []], [5, 6])


def test_the_largest_seed_works() -> None:
    assert 0 <= draw(SamplingConfig(seed=2**64 - 1), random_logits(0), [], 2**40) < 6400


def test_a_list_and_an_array_of_seen_ids_are_the_same() -> None:
    logits = random_logits(2)
    config = SamplingConfig(repetition_penalty=2.0, temperature=0)
    seen = np.argsort(-logits)[:50]
    assert draw(config, logits, seen, 0) == draw(config, logits, seen.tolist(), 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    logits = random_logits(0)
    logits[77] = bad
    with pytest.raises(MmcliError, match=r"position 9 are not finite \(token 77: ") as caught:
        draw(SamplingConfig(temperature=temperature), logits, [], 9)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_nonsense_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        SamplingConfig(**{name: value})
    assert f"{name} = {value}" in caught.value.what
    assert name in caught.value.fix


@pytest.mark.parametrize("width", [51, 400, 801, 6400, 6437])
@pytest.mark.parametrize("k", [1, 2, 50])
def test_the_kth_largest_is_that_of_a_whole_sort(width: int, k: int) -> None:
    """Also where many scores are equal, or forbidden by a grammar."""
    rng = np.random.default_rng(width + k)
    plain = rng.standard_normal(width).astype(np.float32)
    forbidden = np.where(rng.random(width) < 0.99, -np.inf, plain).astype(np.float32)
    for scores in (
        plain,
        np.round(plain),
        forbidden,
        np.sort(plain),
        np.sort(plain)[::-1],
        np.zeros(width, np.float32),
    ):
        assert _kth_largest(scores, k) == np.sort(scores)[-k]
