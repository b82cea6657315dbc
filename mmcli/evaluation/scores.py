"""Shares of right answers, with what they leave open."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054  # of the normal distribution: 95 % lie within this many standard deviations


@dataclass(frozen=True)
class Score:
    """Correct ones out of `total`."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % score interval of the share (Wilson 1927): where it lies if the questions are a random sample."""
        n, share = self.total, self.share
        if not n:
            return 0.0, 1.0
        middle = share + Z95**2 / (2 * n)
        spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
        low, high = ((middle + sign * spread) / (1 + Z95**2 / n) for sign in (-1, 1))
        return (low if self.correct else 0.0), (high if self.correct < n else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Counts, share and interval."""
        return {"correct": self.correct, "total": self.total, "score": self.share, "interval": list(self.interval)}


Families = Mapping[str, Mapping[str, Score]]  # family -> language -> score


def scores(judged: Iterable[tuple[str, str, bool]]) -> dict[str, dict[str, Score]]:
    """Family -> language -> score, in the order of the (family, language, correct) of `judged`."""
    found: dict[str, dict[str, Score]] = {}
    for name, language, correct in judged:
        family = found.setdefault(name, {})
        so_far = family.get(language, Score(0, 0))
        family[language] = Score(so_far.correct + correct, so_far.total + 1)
    return found


def add_scores(parts: Collection[Score]) -> Score:
    """All of `parts` together: every question counts the same."""
    return Score(sum(part.correct for part in parts), sum(part.total for part in parts))


def family_scores(families: Families) -> dict[str, Score]:
    """The score of each family, its languages together."""
    return {name: add_scores(languages.values()) for name, languages in families.items()}


def language_scores(families: Families) -> dict[str, Score]:
    """The score of each language over all families."""
    languages = dict.fromkeys(language for family in families.values() for language in family)
    return {name: add_scores([each[name] for each in families.values() if name in each]) for name in languages}


def total_score(families: Families) -> Score:
    """The score over all families and languages."""
    return add_scores([score for family in families.values() for score in family.values()])
