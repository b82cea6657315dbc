"""The held-out questions, and the rule that says whether a reply is right."""

import json
from collections import Counter
from typing import get_args

import pytest

from mmcli.data.demo import Question, is_correct, questions
from mmcli.data.demo.arithmetic import Size, result, task_ask, tasks
from mmcli.data.demo.asks import Ask, asks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.questions import _question
from mmcli.data.demo.reading import reading_asks
from mmcli.data.demo.skills import counting_ask, thinking_ask
from mmcli.data.demo.talker import dialogue
from mmcli.data.demo.world import LANGUAGES


def test_there_are_enough_questions_of_every_family():
    count = Counter((q.family, q.language) for q in questions())
    assert sum(count.values()) >= 1400
    assert {family for family, _ in count} == {
        *("facts", "things", "follow-up", "new-subject", "arithmetic", "order", "pairs"),
        *("translation", "identity", "system", "unknown"),
        *("phrasing", "reading", "counting", "thinking", "tools"),
    }
    assert min(count.values()) >= 15
    assert len({q.id for q in questions()}) == len(questions())
    assert all(q.messages[-1]["role"] == "user" and q.answers for q in questions())


def every_ask() -> list[Ask]:
    found = [ask for language in LANGUAGES for ask in (*asks(language, held_out=True), *asks(language)[::4])]
    for operation in "+->":
        for size in get_args(Size):
            for task in tasks(operation, size, held_out=True)[:60]:
                if operation == ">" or result(task) not in (task[0], task[2]):
                    found += [task_ask(task, language) for language in LANGUAGES]
    for seed in range(40):
        for language in LANGUAGES:
            draw = Draw(seed, "asks")
            found += [ask for _, ask in reading_asks(draw, language, 2, held_out=True)]
            found.append(counting_ask(draw, language, True))
            found.append(thinking_ask(draw, language, True)[0])
    return found


def test_right_sentences_are_right_and_wrong_ones_wrong():
    for ask in every_ask():
        question = _question(ask, ask.family, dialogue(ask.questions[0]), 0)
        assert is_correct(question, ask.short), ask.key
        assert not set(question.answers) & set(question.rivals)
        for form in range(2):
            assert is_correct(question, ask.full(form)), ask.full(form)
            assert not any(is_correct(question, ask.wrong(other, form)) for other in ask.others[:4]), ask.key


def test_lists_of_candidates_are_wrong():
    for question in (each for each in questions() if each.call is None):
        for joint in (", ", " or ", " ", "、", "和"):
            if question.rivals:
                assert not is_correct(question, joint.join((question.answers[0], question.rivals[0]))), question.id
                assert not is_correct(question, joint.join((question.rivals[-1], question.answers[0]))), question.id
        assert not is_correct(question, "")
        assert not is_correct(question, question.messages[-1]["content"]), question.id
        assert not is_correct(question, question.answers[0] + " bla" * 100)


def key(question: Question) -> str:
    """The reply that the key of the questions holds."""
    if question.call is not None:
        return f"<tool_call>\n{json.dumps(question.call)}\n</tool_call>"
    return question.answers[0]


def test_a_model_that_answers_by_the_key_is_right_and_by_a_shuffled_key_at_chance():
    """The control: what is right for one question is next to never right for another one."""
    families: dict[tuple[str, str], list[Question]] = {}
    for question in questions():
        families.setdefault((question.family, question.language), []).append(question)
    right = total = 0
    for (family, _), group in families.items():
        assert all(is_correct(question, key(question)) for question in group), family
        shuffled = Draw(0, "control").shuffled([key(question) for question in group])
        share = sum(map(is_correct, group, shuffled)) / len(group)
        if family == "unknown":  # all have the same answer
            continue
        assert share <= 0.35, (family, share)  # identity has four topics
        right, total = right + share * len(group), total + len(group)
    assert right / total < 0.06


def test_the_rule_for_tool_calls():
    asked = [each for each in questions() if each.family == "tools"]
    assert asked and all(each.tools and each.call is not None for each in asked)
    first = asked[0]
    assert first.call is not None
    expression = first.call["arguments"]["expression"]
    closer = expression.replace(" ", "")
    tight = json.dumps({"name": "calculator", "arguments": {"expression": closer}})
    assert is_correct(first, f"<tool_call>{tight}</tool_call>\n")
    for reply in (
        tight,
        first.answers[0],
        key(asked[1]),
        key(first) + " " + first.answers[0],
        key(first) + key(first),
        key(first).replace("calculator", "abacus"),
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>\n{"name": 1}\n</tool_call>',
        '<tool_call>\n{"name": "calculator", "arguments": "1"}\n</tool_call>',
    ):
        assert not is_correct(first, reply), reply


def test_one_reply_to_everything_scores_next_to_nothing():
    """No constant reply is right for more than a small part of the facts."""
    facts = [q for q in questions() if q.family in ("facts", "things", "follow-up")]
    best = max(sum(is_correct(q, reply) for q in facts) for reply in {a for q in facts for a in q.answers})
    assert best / len(facts) < 0.05


def test_the_answer_is_in_the_text_and_the_text_is_no_answer():
    for each in (q for q in questions() if q.family == "reading"):
        text = each.messages[-1]["content"].casefold()
        assert each.answers[0] in text
        assert not is_correct(each, text)


def question(*answers: str, rivals: tuple[str, ...] = (), text: str = "?", exact: bool = False) -> Question:
    return Question("id", "en", "facts", ({"role": "user", "content": text},), answers, rivals, (), exact)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("cat", True),
        ("  CAT. ", True),
        ("ｃａｔ！", True),
        ("Mira has a cat.", True),
        ("Mira has a cat and a dog.", False),
        ("Mira has a cat, 狗.", False),
        ("Mira has no cat.", False),
        ("Mira doesn't have a cat.", False),
        ("Maybe a cat.", False),
        ("a catalogue", False),
        ("Tom has a cat.", False),
        ("dog", False),
    ],
)
def test_the_rule_for_names(reply, right):
    assert is_correct(question("cat", rivals=("dog", "狗", "tom")), reply) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("68", True),
        ("23 + 45 = 68", True),
        ("The answer is 68.", True),
        ("67 68 69", False),
        ("168", False),
        ("68 or 69", False),
        ("23 + 45", False),
        ("23 + 46 = 68", False),
    ],
)
def test_the_rule_for_numbers(reply, right):
    assert is_correct(question("68", rivals=("67", "69"), text="What is 23 + 45?"), reply) is right


def test_the_rule_for_comparisons_and_bare_answers():
    larger = question("45", rivals=("23",), text="Which is larger, 23 or 45?")
    assert is_correct(larger, "45 is larger.") and not is_correct(larger, "23 or 45")
    assert not is_correct(larger, "45 and 23")
    bare = question("cat", exact=True)
    assert is_correct(bare, "Cat.") and not is_correct(bare, "Mira has a cat.")


def test_the_longest_candidate_counts():
    december = question("十二月", rivals=("二月", "一月", "十一月"))
    assert is_correct(december, "她的生日在十二月。") and not is_correct(december, "她的生日在十一月。")
