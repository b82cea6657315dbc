"""From logits to the next token ids, in numpy, the same for every backend.

Order of operations, the one of Hugging Face transformers:
repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw.

Shapes: S sequences, V vocabulary, C candidates left by top-k, N blocks of B of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmcli.errors import MmcliError, UserError

# Without top-k, the nucleus is looked for among this many tokens before all of them are sorted.
NUCLEUS_GUESS = 256
LOWEST = np.finfo(np.float32).min
IN_CACHE = 2**16  # scores that are worked on at a time: several passes over more would each come from the memory
BLOCK = 64  # candidates whose weights are summed at once
# Of the sum of all weights, what a cumulated float32 weight and the draw may be off, together: numpy's exp by less than
# 3 units in the last place, a block's sum by less than 10 roundings (2e-6); twice that.
SURE = 2.0**-18
FEW = 0.2  # share of candidates up to which it pays to line up those that are kept
COLUMNS = 8  # of scores, for each of the k of top-k
STREAM = 64  # positions whose random numbers are made at once


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
    if len(configs) == 1 or len({config.without_seed for config in configs}) == 1:
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


def sample_one(
    logits_V: np.ndarray,
    config: SamplingConfig,
    seen_ids: Sequence[int] | np.ndarray,
    position: int,
    allowed_V: np.ndarray | None = None,
) -> int:
    """The next id of one sequence, the same as by `sample`, and soon found where it is the most likely one.

    Between two passes of a model its weights have driven all else from the processor's caches, so what counts is how
    much code runs at all: a few lines of `sample` take as long as a matrix.
    """
    if config.temperature == 0 and config.repetition_penalty == 1 and allowed_V is None:
        best = logits_V.argmax()
        if math.isfinite(logits_V[best]) and math.isfinite(logits_V[logits_V.argmin()]):  # NaN is both
            return int(best)
    return int(sample(logits_V[None], [config], [seen_ids], [position], [allowed_V])[0])


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
    ids_1C, scores_1C = _candidates(scores_1V, config)
    weights_C = np.exp(scores_1C[0].astype(np.float64))
    places = weights_C.nonzero()[0]
    return places if ids_1C is None else ids_1C[0, places], weights_C[places] / weights_C.sum()


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
    ids_S = np.empty(len(configs), dtype=np.int64)
    n_rows = max(1, IN_CACHE // logits_SV.shape[1])
    for first in range(0, len(configs), n_rows):
        rows = slice(first, first + n_rows)
        scores_SV = _penalized(logits_SV[rows], seen_ids[rows], config.repetition_penalty)
        if config.temperature == 0:
            ids_S[rows] = scores_SV.argmax(axis=1)
            continue
        ids_SC, scores_SC = _candidates(scores_SV, config)
        uniform_S = np.array([uniform(each.seed, n) for each, n in zip(configs[rows], positions[rows], strict=True)])
        places_S = _draw(scores_SC, uniform_S)
        ids_S[rows] = places_S if ids_SC is None else ids_SC[np.arange(len(places_S)), places_S]
    return ids_S


def _penalized(logits_SV: np.ndarray, seen_ids: Sequence[Sequence[int] | np.ndarray], penalty: float) -> np.ndarray:
    """float32 scores with the repetition penalty of CTRL (Keskar et al. 2019, section 4.1); the input is left alone.

    As in transformers, a negative score is multiplied: dividing it would make the token likelier.
    """
    scores_SV = np.asarray(logits_SV, dtype=np.float32)
    if penalty == 1:
        return scores_SV
    scores_SV = np.array(scores_SV)
    n_rows, width = scores_SV.shape
    flat, firsts = scores_SV.reshape(-1), range(0, n_rows * width, width)
    where = np.concatenate([np.asarray(seen, dtype=np.int64) + at for at, seen in zip(firsts, seen_ids, strict=True)])
    values = flat[where]
    flat[where] = np.where(values > 0, values / penalty, values * penalty)
    return scores_SV


def _candidates(scores_SV: np.ndarray, config: SamplingConfig) -> tuple[np.ndarray | None, np.ndarray]:
    """(ids_SC, scores_SC): of each row the candidates, ascending, and the logarithm of their weights, the largest 0.

    What cannot be drawn has -inf: dropped candidates, and the padding at the end of rows that have fewer. `ids_SC` is
    None where every place is its own id.
    """
    # The largest score becomes 0 first, so a very small temperature drives the others to -inf: greedy, not NaN.
    with np.errstate(over="ignore"):
        scores_SC = scores_SV - scores_SV.max(axis=1, keepdims=True)
        if config.temperature != 1:
            scores_SC /= np.float32(max(config.temperature, 1e-30))
    ids_SC: np.ndarray | None = None
    is_limited = 0 < config.top_k < scores_SC.shape[1]
    if is_limited:
        kth_S = np.array([_kth_largest(scores_C, config.top_k) for scores_C in scores_SC])
        kth_S1 = np.maximum(kth_S, LOWEST)[:, None]  # of what a grammar forbids, nothing
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, scores_SC >= kth_S1)  # with every tie of the last
    if config.top_p < 1:
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, _top_p(scores_SC, config.top_p, limited=is_limited))
    if config.min_p > 0:
        # min-p (Nguyen et al. 2024): p >= min_p * p_max, and the largest score is 0.
        ids_SC, scores_SC = _keep(ids_SC, scores_SC, scores_SC >= math.log(config.min_p))
    return ids_SC, scores_SC


def _kth_largest(scores_C: np.ndarray, k: int) -> np.float32:
    """The k-th largest of many scores, looked for among those that can be it: a fifth of the time of a partition."""
    part = len(scores_C) // (COLUMNS * k)
    if part > 1:
        # Of the maxima of columns, k are as large as the k-th largest of them, so at least k scores are.
        whole = len(scores_C) // part * part
        maxima = scores_C[:whole].reshape(part, -1).max(axis=0)
        scores_C = scores_C[scores_C >= np.partition(maxima, -k)[-k]]
    found: np.float32 = np.partition(scores_C, -k)[-k]
    return found


def _keep(
    ids_SC: np.ndarray | None, scores_SC: np.ndarray, kept_SC: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """(ids_SC, scores_SC) without what is not kept: at a score of -inf, in place, or cut where that pays."""
    n_rows, width = kept_SC.shape
    if n_rows == 1:
        places = kept_SC[0].nonzero()[0]
        return (places if ids_SC is None else ids_SC[0].take(places))[None], scores_SC[0].take(places)[None]
    if np.count_nonzero(kept_SC) > FEW * kept_SC.size:
        np.copyto(scores_SC, -np.inf, where=~kept_SC)
        return ids_SC, scores_SC
    rows, columns = np.divmod(np.flatnonzero(kept_SC), width)
    counts_S = np.bincount(rows, minlength=n_rows)
    places = np.arange(len(rows)) - (np.cumsum(counts_S) - counts_S)[rows]
    cut_ids_SC = np.zeros((n_rows, counts_S.max()), dtype=np.int64)
    cut_scores_SC = np.full(cut_ids_SC.shape, -np.inf, dtype=np.float32)
    cut_ids_SC[rows, places] = columns if ids_SC is None else ids_SC[rows, columns]
    cut_scores_SC[rows, places] = scores_SC[rows, columns]
    return cut_ids_SC, cut_scores_SC


def _draw(scores_SC: np.ndarray, uniform_S: np.ndarray) -> np.ndarray:
    """The place in each row at which the cumulated weights exp(scores_SC) pass the share `uniform_S` of their sum.

    The weights that decide are float64, cumulated by id, not by rank, so tiny differences between backends that swap
    two ranks do not move everything behind them. A running sum is the same for any padding behind it, which a pairwise
    one is not.
    """
    if scores_SC.shape[1] <= 4 * BLOCK:
        return _draw_exactly(scores_SC, uniform_S)
    # float32 and sums of blocks are several times quicker, and decide wherever the draw is not within their error.
    rows, width = np.arange(len(scores_SC)), scores_SC.shape[1]
    weights_SC = np.exp(scores_SC)
    if width % BLOCK:
        weights_SC = np.pad(weights_SC, ((0, 0), (0, -width % BLOCK)))
    weights_SNB = weights_SC.reshape(len(rows), -1, BLOCK)
    cumulated_SN = weights_SNB.sum(axis=2).cumsum(axis=1, dtype=np.float64)
    drawn_S1 = (uniform_S * cumulated_SN[:, -1])[:, None]
    block_S = np.minimum((cumulated_SN <= drawn_S1).sum(axis=1), cumulated_SN.shape[1] - 1)
    edges_SE = np.zeros((len(rows), BLOCK + 1))  # cumulated weights before the block and after each of its places
    edges_SE[:, 0] = np.where(block_S > 0, cumulated_SN[rows, block_S - 1], 0)
    edges_SE[:, 1:] = edges_SE[:, :1] + weights_SNB[rows, block_S].cumsum(axis=1, dtype=np.float64)
    is_sure_S = (np.abs(edges_SE - drawn_S1) > SURE * cumulated_SN[:, -1:]).all(axis=1)
    is_sure_S &= (edges_SE[:, 0] < drawn_S1[:, 0]) & (drawn_S1[:, 0] < edges_SE[:, -1])
    places_S = block_S * BLOCK + (edges_SE[:, 1:] > drawn_S1).argmax(axis=1)
    for row in np.flatnonzero(~is_sure_S):
        places_S[row] = _draw_exactly(scores_SC[row : row + 1], uniform_S[row : row + 1])[0]
    return places_S


def _draw_exactly(scores_SC: np.ndarray, uniform_S: np.ndarray) -> np.ndarray:
    cumulated_SC = np.exp(scores_SC.astype(np.float64)).cumsum(axis=1)
    total_S = cumulated_SC[:, -1]
    drawn_S = np.minimum(uniform_S * total_S, np.nextafter(total_S, 0))
    places_S: np.ndarray = (cumulated_SC > drawn_S[:, None]).argmax(axis=1)
    return places_S


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but (seed, position): Philox 4x64-10 (Salmon et al. 2011).

    It is the first of the four that numpy's `Philox(key=seed, counter=position)` draws.
    """
    return float(_uniforms(seed, position // STREAM)[position % STREAM])


@lru_cache(maxsize=1024)
def _uniforms(seed: int, part: int) -> np.ndarray:
    """`uniform` of STREAM positions from `part` * STREAM on: the counter goes up by one with four numbers drawn."""
    bits = np.random.Philox(key=seed, counter=part * STREAM).random_raw(4 * STREAM)[::4]
    return (bits >> np.uint64(11)) * 2.0**-53


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
