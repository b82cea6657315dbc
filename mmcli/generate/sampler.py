"""From logits to the next token id, in numpy, the same for every backend.

Order of operations, the one of Hugging Face transformers:
repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw. V is the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcli.errors import MmcliError, UserError

# Without top-k, the nucleus is looked for among this many tokens before all of them are sorted.
NUCLEUS_GUESS = 256


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen. The defaults suit models of a few million to a few hundred million parameters."""

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


class Sampler:
    """Draws token ids. It holds no state: (logits, seen ids, seed, position) decide the result.

    So a sequence is the same alone, in a batch with others, and after a retry of the same step.
    """

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config

    def sample(self, logits_V: np.ndarray, seen_ids: Sequence[int] | np.ndarray, position: int) -> int:
        """The id of the token at `position` of its sequence.

        Args:
            logits_V: the model's scores.
            seen_ids: ids that the repetition penalty applies to, repeats allowed; an int array is quickest.
            position: how many tokens come before the one drawn.

        Raises:
            MmcliError: a logit is NaN or infinite.
        """
        if self.config.temperature == 0:
            return int(np.argmax(self._penalized(logits_V, seen_ids, position)))
        ids, probs = self.distribution(logits_V, seen_ids, position)
        # The cumulated probabilities run by id, not by rank, so tiny differences between backends that swap
        # two ranks do not move everything behind them.
        cumulated = np.cumsum(probs)
        place = np.searchsorted(cumulated, uniform(self.config.seed, position) * cumulated[-1], side="right")
        return int(ids[min(int(place), len(ids) - 1)])

    def distribution(
        self, logits_V: np.ndarray, seen_ids: Sequence[int] | np.ndarray, position: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids that can be drawn, ascending, and their probabilities (float64, sum 1).

        At temperature 0 the most likely id with probability 1.

        Raises:
            MmcliError: a logit is NaN or infinite.
        """
        config = self.config
        scores_V = self._penalized(logits_V, seen_ids, position)
        if config.temperature == 0:
            return np.array([np.argmax(scores_V)]), np.ones(1)
        # The largest score becomes 0 first, so a very small temperature drives the others to -inf: greedy, not NaN.
        with np.errstate(over="ignore"):
            scores_V = (scores_V - scores_V.max()) / np.float32(max(config.temperature, 1e-30))
        ids = _top_k(scores_V, config.top_k)
        if config.top_p < 1:
            ids = _top_p(scores_V, ids, config.top_p)
        if config.min_p > 0:
            # min-p (Nguyen et al. 2024): p >= min_p * p_max, and the largest score is 0.
            ids = ids[scores_V[ids] >= math.log(config.min_p)]
        weights = np.exp(scores_V[ids].astype(np.float64))
        return ids, weights / weights.sum()

    def _penalized(self, logits_V: np.ndarray, seen_ids: Sequence[int] | np.ndarray, position: int) -> np.ndarray:
        """A float32 copy with the repetition penalty of CTRL (Keskar et al. 2019, section 4.1).

        As in transformers, a negative score is multiplied: dividing it would make the token likelier.
        """
        scores_V = np.array(logits_V, dtype=np.float32)
        if not np.isfinite(scores_V).all():
            wrong = int(np.flatnonzero(~np.isfinite(scores_V))[0])
            raise MmcliError(
                f"the model's logits at position {position} are not finite (token {wrong}: {scores_V[wrong]})",
                "its training diverged or its precision overflows: use an earlier checkpoint, or fp32",
            )
        penalty = self.config.repetition_penalty
        if penalty != 1 and len(seen_ids) > 0:
            seen = np.asarray(seen_ids, dtype=np.int64)
            values = scores_V[seen]
            scores_V[seen] = np.where(values > 0, values / penalty, values * penalty)
        return scores_V


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but (seed, position): Philox 4x64 (Salmon et al. 2011)."""
    bits = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (bits >> 11) * 2.0**-53


def _top_k(scores_V: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest scores, ascending, with every tie of the last; all ids when k is 0."""
    if k == 0 or k >= len(scores_V):
        return np.arange(len(scores_V))
    kth = np.partition(scores_V, -k)[-k]
    return np.flatnonzero(scores_V >= kth)


def _top_p(scores_V: np.ndarray, ids: np.ndarray, top_p: float) -> np.ndarray:
    """Of `ids`, the fewest most likely ones that have `top_p` of the probability (Holtzman et al. 2020).

    Ties of the last stay too, so the result does not depend on how a sort orders equals. Ascending.
    """
    weights = np.exp(scores_V[ids])
    limit = top_p * weights.sum(dtype=np.float64)
    # Sorting everything is the slow part, and the nucleus mostly lies among the largest few.
    largest = weights
    if len(weights) > 4 * NUCLEUS_GUESS:
        few = np.partition(weights, -NUCLEUS_GUESS)[-NUCLEUS_GUESS:]
        if few.sum(dtype=np.float64) >= limit:
            largest = few
    falling = np.sort(largest)[::-1]
    # The last one kept is the first at which the cumulated weight reaches the limit.
    reached = int(np.searchsorted(np.cumsum(falling, dtype=np.float64), limit, side="left"))
    return ids[weights >= falling[min(reached, len(falling) - 1)]]
