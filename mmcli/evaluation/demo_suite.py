"""The built-in suite: the held-out questions of the built-in corpus."""

from __future__ import annotations

import json

from mmcli.data.demo import CORPUS_VERSION, is_correct, questions
from mmcli.data.demo.judge import Question
from mmcli.evaluation.suites import Suite, SuiteItem

DEMO = Suite(
    name="demo",
    summary="Held-out questions about the built-in corpus, in English and Chinese.",
    items="mmcli.evaluation.demo_suite:demo_items",
    judge="mmcli.evaluation.demo_suite:judge",
    version=CORPUS_VERSION,
)


def demo_items() -> list[SuiteItem]:
    """The questions of the corpus; the data of each is the `Question` that the corpus's own rule judges."""
    return [_item(question) for question in questions()]


def judge(item: SuiteItem, reply: str) -> bool:
    """Whether the reply answers the question, by `mmcli.data.demo.is_correct`."""
    return is_correct(item.data, reply)


def _item(question: Question) -> SuiteItem:
    answers = question.answers
    if question.call is not None:
        answers = (f"<tool_call>{json.dumps(question.call, ensure_ascii=False)}</tool_call>",)
    return SuiteItem(
        id=question.id,
        messages=tuple(question.messages),
        answers=answers,
        family=question.family,
        language=question.language,
        tools=question.tools or None,
        data=question,
    )
