"""The held-out questions, and the rule that says whether a reply is right."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from mmcli.data.demo import identity
from mmcli.data.demo.arithmetic import task_ask, tasks
from mmcli.data.demo.asks import Ask, asks, fact_ask
from mmcli.data.demo.conversations import OTHER, Message, dialogue, follow_up
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import TEXT, fill
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE, Entity, Language, is_held_out, values_of

LONGEST_REPLY = 200
"""Characters of a normalised reply that may still be right."""

_EDGES = " \t\n.,;:!?。、·…\"'“”‘’()[]<>*_-"
_HEDGES = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|probably|might)\b|或|还是|也许|可能|大概")
_DENIALS = re.compile(r"\b(?:not|no|never|nor|cannot|unknown)\b|n['’]t\b|不|没|别|无法")


@dataclass(frozen=True)
class Question:
    """One held-out question.

    `messages` end in a user turn. `answers` are the accepted exact answers, normalised. `rivals` are other candidates:
    a reply that names one of them is wrong. `subject` is what the question is about, which a reply may repeat. With
    `exact` the reply has to be the answer and nothing else.
    """

    id: str
    language: Language
    family: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    exact: bool = False


def normalise(text: str) -> str:
    """NFKC, casefold, single spaces, no punctuation at either end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@lru_cache(maxsize=4096)
def _candidates(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the names, the longest first; Latin ones as whole words only."""
    longest_first = sorted(dict.fromkeys(names), key=lambda name: (-len(name), name))
    return re.compile("|".join(_bounded(name) for name in longest_first))


def _bounded(name: str) -> str:
    before = r"(?<![a-z0-9])" if name[0].isascii() else ""
    after = r"(?![a-z0-9])" if name[-1].isascii() else ""
    return before + re.escape(name) + after


def is_correct(question: Question, reply: str) -> bool:
    """Whether the reply answers the question.

    Both sides are normalised: NFKC, casefold, single spaces, no punctuation at the ends. A reply is right if

    1. it equals one of the accepted answers; or
    2. the question does not ask for the bare answer (`exact`), and the reply is a sentence of at most 200 characters
       that names an accepted answer (a whole word in Latin script or digits, a sub-string in Chinese) and no other
       candidate, and neither hedges ("or", "maybe", "或", "可能") nor denies ("not", "no", "不", "没"), unless to deny
       is the answer.

    Other candidates are the question's `rivals`: the other values of the same kind in both languages, and, where the
    question is about a person, all other people. Where the answer is a number, every number that is not in the question
    is another candidate, and so is the other number of a comparison. So a reply that lists candidates, or that gives
    the right value for the wrong person, is wrong. Candidates are found longest first: 十一月 does not name 一月.
    """
    text = normalise(reply)
    if text in question.answers:
        return True
    denial_wanted = any(_DENIALS.search(answer) for answer in question.answers)
    if question.exact or len(text) > LONGEST_REPLY or _HEDGES.search(text):
        return False
    if _DENIALS.search(text) and not denial_wanted:
        return False
    if question.answers[0].isdigit():
        asked = set(re.findall(r"\d+", question.messages[-1]["content"])) - {*question.answers, *question.rivals}
        return set(re.findall(r"\d+", text)) - asked == {question.answers[0]}
    named = set(_candidates(question.answers + question.rivals + question.subject).findall(text))
    return bool(named & set(question.answers)) and named <= {*question.answers, *question.subject}


def _normal(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(normalise(name) for name in names))


def _question(ask: Ask, family: str, messages: list[Message], number: int, exact: bool = False) -> Question:
    answers = _normal(ask.answers)
    rivals = tuple(name for name in _normal(ask.rivals) if name not in answers)
    name = f"{ask.language}/{family}/{ask.key.split(':', 1)[1]}/{number}"
    subject = tuple(name for name in _normal(ask.subject) if name not in (*answers, *rivals))
    return Question(name, ask.language, family, tuple(messages), answers, rivals, subject, exact)


def _asked(language: Language) -> Iterator[Question]:
    """Facts and things in all their phrasings; orders, word pairs and translations in one of them."""
    for n, ask in enumerate(asks(language, held_out=True)):
        phrasings = ask.questions if ask.family in ("facts", "things") else (ask.questions[n % 2],)
        for text in phrasings:
            yield _question(ask, ask.family, dialogue(text), n * 3 + ask.questions.index(text))


def _arithmetic(language: Language) -> Iterator[Question]:
    draw = Draw(0, f"questions:arithmetic:{language}")
    for operation, small, count in (
        ("+", True, 25),
        ("+", False, 25),
        ("-", True, 20),
        ("-", False, 20),
        (">", False, 15),
    ):
        # A sum whose answer is one of its own numbers could be "answered" by repeating it.
        found = [
            t for t in tasks(operation, small, held_out=True) if operation == ">" or _is_open(t[0], operation, t[2])
        ]
        for n, task in enumerate(draw.sample(found, count)):
            ask = task_ask(task, language)
            yield _question(ask, "arithmetic", dialogue(draw.pick(ask.questions)), n)


def _is_open(a: int, operation: str, b: int) -> bool:
    return (a + b if operation == "+" else a - b) not in (a, b)


def _follow_ups(language: Language) -> Iterator[Question]:
    draw = Draw(0, f"questions:follow-up:{language}")
    for person in PEOPLE:
        known = [name for name in ATTRIBUTES["person"] if not is_held_out(person, name)]
        for n, name in enumerate(name for name in ATTRIBUTES["person"] if is_held_out(person, name)):
            first, ask = fact_ask(person, draw.pick(known), language), fact_ask(person, name, language)
            turns = (draw.pick(first.questions), first.full(), follow_up(draw, person, name, language))
            yield _question(ask, "follow-up", dialogue(*turns), n)


def _identity(language: Language) -> Iterator[Question]:
    others = tuple(normalise(name) for term in identity.OTHER_NAMES for name in term)
    for topic_number, topic in enumerate(identity.TOPICS[language]):
        for n, text in enumerate(topic.held_out):
            name = f"{language}/identity/{topic_number}/{n}"
            rivals = topic.rivals or (others if topic_number == 0 else ())
            yield Question(name, language, "identity", tuple(dialogue(text)), topic.answers, rivals)


def _system(language: Language) -> Iterator[Question]:
    """Behaviour set by a system prompt: the bare answer, the other language, another name."""
    draw = Draw(0, f"questions:system:{language}")
    held_out = asks(language, held_out=True)
    for n, ask in enumerate(draw.sample([a for a in held_out if a.family in ("facts", "things")], 40)):
        system = draw.pick(identity.SHORT_PROMPTS[language])
        yield _question(ask, "system", dialogue(draw.pick(ask.questions), system=system), n, exact=True)
    twins = {ask.key: ask for ask in asks(OTHER[language], held_out=True)}
    for n, ask in enumerate(draw.sample([a for a in held_out if a.family == "facts"], 25)):
        messages = dialogue(draw.pick(ask.questions), system=draw.pick(identity.OTHER_LANGUAGE_PROMPTS[language]))
        question = _question(twins[ask.key], "system", messages, n)
        yield replace(question, id=f"{language}/system/other/{n}", language=language)
    names = [term.say(language) for term in identity.OTHER_NAMES] + list(identity.NAME.values())
    for n, name in enumerate(names[:-2]):
        topic = identity.TOPICS[language][0]
        messages = dialogue(
            topic.held_out[n % len(topic.held_out)], system=draw.pick(identity.NAME_PROMPTS[language]).format(name=name)
        )
        rivals = tuple(normalise(other) for other in names if other != name)
        yield Question(f"{language}/system/name/{n}", language, "system", tuple(messages), (normalise(name),), rivals)


def _unknown(language: Language) -> Iterator[Question]:
    """Strangers and things outside the world: the right answer is not to know."""
    refusals = tuple(normalise(text) for text in identity.REFUSALS[language])
    for n, text in enumerate(identity.HELD_OUT_OUTSIDE[language]):
        yield Question(f"{language}/unknown/outside/{n}", language, "unknown", tuple(dialogue(text)), refusals)
    for n, name in enumerate(identity.HELD_OUT_STRANGERS):
        attribute = ATTRIBUTES["person"][n % len(ATTRIBUTES["person"])]
        rivals = tuple(normalise(value) for term in values_of("person", attribute) for value in term)
        text = fill(_phrasing(attribute, language, n), Entity("person", name, {}), language)
        yield Question(f"{language}/unknown/stranger/{n}", language, "unknown", tuple(dialogue(text)), refusals, rivals)


def _phrasing(attribute: str, language: Language, n: int) -> str:
    choices: tuple[str, ...] = TEXT[language].QUESTIONS["person"][attribute]
    return choices[n % len(choices)]


@cache
def questions() -> tuple[Question, ...]:
    """All held-out questions: the same for every seed, for the world is. About half are in each language."""
    families = (_asked, _arithmetic, _follow_ups, _identity, _system, _unknown)
    return tuple(question for language in LANGUAGES for family in families for question in family(language))
