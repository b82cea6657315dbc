"""The suites of questions by name. Nothing of them is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """A set of questions with known answers. Functions are named as "module:function" and imported on use."""

    questions: str  # () -> Sequence[Question]
    is_correct: str  # (Question, reply text) -> bool


SUITES = {"demo": Suite("mmcli.data.demo:questions", "mmcli.data.demo:is_correct")}
