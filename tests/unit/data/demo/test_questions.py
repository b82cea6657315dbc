"""The held-out questions, and the rule that says whether a reply is right."""

from collections import Counter

import pytest

from mmcli.data.demo import Question, is_correct, questions
from mmcli.data.demo.arithmetic import result, task_ask, tasks
from mmcli.data.demo.asks import Ask, asks
from mmcli.data.demo.conversations import dialogue
from mmcli.data.demo.questions import _question
from mmcli.data.demo.world import LANGUAGES


def test_there_are_enough_questions_of_every_family():
    count = Counter((q.family, q.language) for q in questions())
    assert sum(count.values()) >= 1200
    assert {family for family, _ in count} == {
        *("facts", "things", "follow-up", "arithmetic", "order", "pairs"),
        *("translation", "identity", "system", "unknown"),
    }
    assert min(count.values()) >= 15
    assert len({q.id for q in questions()}) == len(questions())
    assert all(q.messages[-1]["role"] == "user" and q.answers for q in questions())


def every_ask() -> list[Ask]:
    found = [ask for language in LANGUAGES for ask in (*asks(language, held_out=True), *asks(language)[::4])]
    for operation in "+->":
        for small in (True, False):
            for task in tasks(operation, small, held_out=True)[:60]:
                if operation == ">" or result(task) not in (task[0], task[2]):
                    found += [task_ask(task, language) for language in LANGUAGES]
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
    for question in questions():
        for joint in (", ", " or ", " ", "、", "和"):
            if question.rivals:
                assert not is_correct(question, joint.join((question.answers[0], question.rivals[0]))), question.id
                assert not is_correct(question, joint.join((question.rivals[-1], question.answers[0]))), question.id
        assert not is_correct(question, "")
        assert not is_correct(question, question.messages[-1]["content"]), question.id
        assert not is_correct(question, question.answers[0] + " bla" * 100)


def test_one_reply_to_everything_scores_next_to_nothing():
    """No constant reply is right for more than a small part of the facts."""
    facts = [q for q in questions() if q.family in ("facts", "things", "follow-up")]
    best = max(sum(is_correct(q, reply) for q in facts) for reply in {a for q in facts for a in q.answers})
    assert best / len(facts) < 0.05


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
