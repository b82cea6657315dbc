"""From logits to the next token ids, in numpy, the same for every backend.

Order of operations, the one of Hugging Face transformers:
repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw.

Shapes: S sequences, V vocabulary, C candidates left by top-k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcli.errors import MmcliError, UserError

# Without top-k, the nucleus is looked for among this many tokens before all of them are sorted.
NUCLEUS_GUESS = 256
LOWEST = np.finfo(np.float32).min
WORD = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling parameters. The defaults suit models of a few million to a few hundred million parameters."""

    temperature: float = 0.7  # 0 is greedy: the most likely token, after the repetition penalty
    top_k: int = 50  # keep the k most likely tokens and ties of the last; 0 is off
    top_p: float = 0.9  # keep the fewest most likely tokens that together have this probability; 1 is off
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely one; 0 is off
    repetition_penalty: float = 1.05  # CTRL: divides the score of seen tokens; 1 is off
    seed: int = 0  # with the position, the whole state of the randomness

    def __post_init__(self) -> None:
        def refuse(name: str, wanted: str) -> None:
            raise UserError(f"{name} = {getattr(self, name)} does not work for sampling", f"give {name} {wanted}")

        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            refuse("temperature", "0 (greedy) or more; 0.7 is usual")
        if self.top_k < 0:
            refuse("top_k", "0 (off) or more; 50 is usual")
        if not 0 < self.top_p <= 1:
            refuse("top_p", "above 0 up to 1 (off); 0.9 is usual")
        if not 0 <= self.min_p <= 1:
            refuse("min_p", "0 (off) up to 1; 0.05 is usual")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            refuse("repetition_penalty", "above 0; 1 is off, 1.05 is usual")
        if not 0 <= self.seed < 2**64:
            refuse("seed", "a whole number from 0 up to 2**64 - 1")

    @property
    def without_seed(self) -> tuple[float, ...]:
        """Everything but the seed: the shape of the distribution."""
        return (self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


def sample(
    logits_SV: np.ndarray,
    configs: Sequence[SamplingConfig],
    seen_ids: Sequence[Sequence[int] | np.ndarray],
    positions: Sequence[int],
    allowed: Sequence[np.ndarray | None] = (),
) -> np.ndarray:
    """The next id of each of S sequences; returns ids_S (int64).

    It keeps no state: a row's logits, seen ids, config and position decide its id, whatever the other rows are. So a
    sequence is the same alone, in a batch, and after a retry of the same step.

    Args:
        logits_SV: the model's scores.
        configs: of each row; rows that differ in no more than the seed are drawn together.
        seen_ids: of each row, the ids that its repetition penalty applies to, repeats allowed; int64 arrays are
            quickest.
        positions: of each row, how many tokens come before the one drawn.
        allowed: of each row, bool [V] of the ids that may come, at least one; None for all. Empty: all, in every row.

    Raises:
        MmcliError: a logit is NaN or infinite.
    """
    _refuse_non_finite(logits_SV, positions)
    if any(each is not None for each in allowed):
        logits_SV = np.array(logits_SV, dtype=np.float32)
        for logits_V, allowed_V in zip(logits_SV, allowed, strict=True):
            if allowed_V is not None:
                logits_V[~allowed_V] = -np.inf
    if len({config.without_seed for config in configs}) == 1:
        return _sample_alike(logits_SV, configs, seen_ids, positions)
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, config in enumerate(configs):
        groups.setdefault(config.without_seed, []).append(row)
    ids_S = np.empty(len(configs), dtype=np.int64)
    for rows in groups.values():
        ids_S[rows] = _sample_alike(
            logits_SV[rows],
            [configs[row] for row in rows],
            [seen_ids[row] for row in rows],
            [positions[row] for row in rows],
        )
    return ids_S


def distribution(
    config: SamplingConfig, logits_V: np.ndarray, seen_ids: Sequence[int] | np.ndarray, position: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The ids that can be drawn for one sequence, ascending, and their probabilities (float64, sum 1).

    At temperature 0 the most likely id with probability 1.

    Raises:
        MmcliError: a logit is NaN or infinite.
    """
    logits_1V = np.asarray(logits_V)[None]
    _refuse_non_finite(logits_1V, [position])
    scores_1V = _penalized(logits_1V, [seen_ids], config.repetition_penalty)
    if config.temperature == 0:
        return scores_1V.argmax(axis=1), np.ones(1)
    ids_1C, weights_1C = _weights(scores_1V, config)
    kept = weights_1C[0] > 0
    return ids_1C[0, kept], weights_1C[0, kept] / weights_1C.sum()


def _refuse_non_finite(logits_SV: np.ndarray, positions: Sequence[int]) -> None:
    if math.isfinite(logits_SV.max()) and math.isfinite(logits_SV.min()):  # NaN is the largest of any
        return
    if not np.isfinite(logits_SV).all():
        row, id = (int(each[0]) for each in np.nonzero(~np.isfinite(logits_SV)))
        raise MmcliError(
            f"the model's logits at position {positions[row]} are not finite (token {id}: {logits_SV[row, id]})",
            "its training diverged or its precision overflows: use an earlier checkpoint, or fp32",
        )


def _sample_alike(
    logits_SV: np.ndarray,
    configs: Sequence[SamplingConfig],
    seen_ids: Sequence[Sequence[int] | np.ndarray],
    positions: Sequence[int],
) -> np.ndarray:
    """`sample` for configs that differ in no more than the seed."""
    config = configs[0]
    if len(configs) > 1 and config.temperature > 0 and not 0 < config.top_k < logits_SV.shape[1]:
        # Thousands of candidates in each row: to line them up takes longer than to draw one by one.
        drawn = [
            _sample_alike(logits_SV[row : row + 1], configs[row : row + 1], seen_ids[row : row + 1], [position])
            for row, position in enumerate(positions)
        ]
        return np.concatenate(drawn)
    scores_SV = _penalized(logits_SV, seen_ids, config.repetition_penalty)
    if config.temperature == 0:
        return scores_SV.argmax(axis=1)
    ids_SC, weights_SC = _weights(scores_SV, config)
    # The cumulated weights run by id, not by rank, so tiny differences between backends that swap two ranks do not
    # move everything behind them. A running sum is the same for any padding behind it, which a pairwise one is not.
    cumulated_SC = weights_SC.cumsum(axis=1)
    total_S = cumulated_SC[:, -1]
    uniform_S = [uniform(each.seed, position) for each, position in zip(configs, positions, strict=True)]
    drawn_S = np.minimum(uniform_S * total_S, np.nextafter(total_S, 0))
    place_S = (cumulated_SC > drawn_S[:, None]).argmax(axis=1)
    ids_S: np.ndarray = ids_SC[np.arange(len(configs)), place_S]
    return ids_S


def _penalized(logits_SV: np.ndarray, seen_ids: Sequence[Sequence[int] | np.ndarray], penalty: float) -> np.ndarray:
    """float32 scores with the repetition penalty of CTRL (Keskar et al. 2019, section 4.1); the input is left alone.

    As in transformers, a negative score is multiplied: dividing it would make the token likelier.
    """
    scores_SV = np.asarray(logits_SV, dtype=np.float32)
    if penalty == 1:
        return scores_SV
    scores_SV = np.array(scores_SV)
    for scores_V, seen in zip(scores_SV, seen_ids, strict=True):
        ids = np.asarray(seen, dtype=np.int64)
        values = scores_V[ids]
        scores_V[ids] = np.where(values > 0, values / penalty, values * penalty)
    return scores_SV


def _weights(scores_SV: np.ndarray, config: SamplingConfig) -> tuple[np.ndarray, np.ndarray]:
    """(ids_SC, weights_SC): of each row the candidates, ascending, and their weights (float64, the largest 1).

    What cannot be drawn has weight 0: dropped candidates, and the padding at the end of rows that have fewer.
    """
    # The largest score becomes 0 first, so a very small temperature drives the others to -inf: greedy, not NaN.
    with np.errstate(over="ignore"):
        scores_SC = (scores_SV - scores_SV.max(axis=1, keepdims=True)) / np.float32(max(config.temperature, 1e-30))
    ids_SC: np.ndarray | None = None  # each place is its own id
    is_limited = 0 < config.top_k < scores_SC.shape[1]
    if is_limited:
        kth_S1 = np.partition(scores_SC, -config.top_k, axis=1)[:, -config.top_k, None]
        kth_S1 = np.maximum(kth_S1, LOWEST)  # of what a grammar forbids, nothing
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, scores_SC >= kth_S1)  # with every tie of the last
    if config.top_p < 1:
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, _top_p(scores_SC, config.top_p, limited=is_limited))
    if config.min_p > 0:
        # min-p (Nguyen et al. 2024): p >= min_p * p_max, and the largest score is 0.
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, scores_SC >= math.log(config.min_p))
    if ids_SC is None:
        ids_SC = np.broadcast_to(np.arange(scores_SC.shape[1]), scores_SC.shape)
    return ids_SC, np.exp(scores_SC.astype(np.float64))


def _keep(
    ids_SC: np.ndarray | None, scores_SC: np.ndarray, kept_SC: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """(ids_SC, scores_SC) without what is not kept.

    One row is cut. Of several, the first cut pads those that keep fewer, at score -inf; later ones only lower scores.
    """
    n_rows, width = kept_SC.shape
    if n_rows == 1:
        places = kept_SC[0].nonzero()[0]
        return (places if ids_SC is None else ids_SC[0].take(places))[None], scores_SC[0].take(places)[None]
    if ids_SC is not None:
        return ids_SC, np.where(kept_SC, scores_SC, np.float32(-np.inf))
    rows, ids = np.divmod(np.flatnonzero(kept_SC), width)
    counts_S = np.bincount(rows, minlength=n_rows)
    places = np.arange(len(rows)) - (np.cumsum(counts_S) - counts_S)[rows]
    cut_ids_SC = np.zeros((n_rows, counts_S.max()), dtype=np.int64)
    cut_scores_SC = np.full(cut_ids_SC.shape, -np.inf, dtype=np.float32)
    cut_ids_SC[rows, places] = ids
    cut_scores_SC[rows, places] = scores_SC[rows, ids]
    return cut_ids_SC, cut_scores_SC


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but (seed, position): Philox 4x64-10 (Salmon et al. 2011).

    It is numpy's `Philox(key=seed, counter=position)`, of which making one takes longer than the ten rounds.
    """
    a, b, c, d = position + 1, 0, 0, 0  # numpy counts up before it draws
    key_a, key_c = seed, 0
    for _ in range(10):
        product_a, product_c = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (product_c >> 64) ^ b ^ key_a, product_c & WORD, (product_a >> 64) ^ d ^ key_c, product_a & WORD
        key_a, key_c = (key_a + 0x9E3779B97F4A7C15) & WORD, (key_c + 0xBB67AE8584CAA73B) & WORD
    return (a >> 11) * 2.0**-53


def _top_p(scores_SC: np.ndarray, top_p: float, *, limited: bool) -> np.ndarray:
    """True for the fewest most likely candidates that have `top_p` of a row (Holtzman et al. 2020).

    Ties of the last stay too, so the result does not depend on how a sort orders equals.

    Args:
        limited: top-k left few candidates, behind which rows may be padded.
    """
    weights_SC = np.exp(scores_SC)
    if limited:
        falling = np.sort(weights_SC, axis=1)[:, ::-1]
        cumulated = falling.astype(np.float64).cumsum(axis=1)
        limit_S1 = top_p * cumulated[:, -1:]
    else:
        # Sorting everything is the slow part, and the nucleus mostly lies among the largest few.
        limit_S1 = top_p * weights_SC.astype(np.float64).sum(axis=1, keepdims=True)
        few = min(NUCLEUS_GUESS, weights_SC.shape[1])
        falling = np.sort(np.partition(weights_SC, -few, axis=1)[:, -few:], axis=1)[:, ::-1]
        cumulated = falling.astype(np.float64).cumsum(axis=1)
        if not (cumulated[:, -1:] >= limit_S1).all():
            falling = np.sort(weights_SC, axis=1)[:, ::-1]
            cumulated = falling.astype(np.float64).cumsum(axis=1)
    # The last one kept is the first at which the cumulated weight reaches the limit.
    reaches = cumulated >= limit_S1
    reaches[:, -1] = True
    last_S = falling[np.arange(len(falling)), reaches.argmax(axis=1)]
    kept_SC: np.ndarray = weights_SC >= last_S[:, None]
    return kept_SC
