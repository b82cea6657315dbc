"""Scores and their intervals."""

from __future__ import annotations

import pytest

from mmcli.evaluation.scores import Score, add_scores, family_scores, language_scores, scores, total_score


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # the example of Newcombe 1998, method 3
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilson_s(correct: int, total: int, low: float, high: float) -> None:
    assert Score(correct, total).interval == pytest.approx((low, high), abs=1e-4)


def test_without_questions_nothing_is_known() -> None:
    assert Score(0, 0).interval == (0.0, 1.0) and Score(0, 0).share == 0.0


def test_more_questions_say_more() -> None:
    widths = [high - low for low, high in (Score(n // 2, n).interval for n in (4, 16, 64, 256))]
    assert widths == sorted(widths, reverse=True)


def test_scores_are_added_over_families_and_languages() -> None:
    judged = [("facts", "en", True), ("facts", "zh", False), ("facts", "en", False), ("sums", "en", True)]
    found = scores(judged)
    assert found == {"facts": {"en": Score(1, 2), "zh": Score(0, 1)}, "sums": {"en": Score(1, 1)}}
    assert family_scores(found) == {"facts": Score(1, 3), "sums": Score(1, 1)}
    assert language_scores(found) == {"en": Score(2, 3), "zh": Score(0, 1)}
    assert total_score(found) == add_scores([Score(1, 3), Score(1, 1)]) == Score(2, 4)
