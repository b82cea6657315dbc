"""The held-out questions: the same for every seed. `judge` says which replies are right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from mmcli.data.demo import identity, prompts, unknowns
from mmcli.data.demo.arithmetic import Size, pick_task, task_ask, tasks
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import asks, fact_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.judge import Question, normalise
from mmcli.data.demo.reading import reading_asks
from mmcli.data.demo.render import ASKED, fill
from mmcli.data.demo.skills import CALCULATOR, counting_ask, thinking_ask, tool_ask
from mmcli.data.demo.talker import Message, dialogue, follow_up
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, OTHER, PEOPLE, Entity, Language, is_held_out, values_of

EVERY = 3
"""Of three questions of a family with phrasings or prompts of its own, one is put in those that are held out."""


def _normal(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(normalise(name) for name in names))


def _question(ask: Ask, family: str, messages: list[Message], number: int, exact: bool = False) -> Question:
    answers = _normal(ask.answers)
    rivals = tuple(name for name in _normal(ask.rivals) if name not in answers)
    name = f"{ask.language}/{family}/{ask.key.split(':', 1)[1]}/{number}"
    subject = tuple(name for name in _normal(ask.subject) if name not in (*answers, *rivals))
    return Question(name, ask.language, family, tuple(messages), answers, rivals, subject, exact)


def _asked(language: Language) -> Iterator[Question]:
    """What is told and never asked. Facts and things in two trained phrasings, the rest in one."""
    for n, ask in enumerate(asks(language, held_out=True)):
        count = 2 if ask.family in ("facts", "things") else 1
        for i in range(count):
            text = ask.questions[(n + 2 * i) % len(ask.questions)]
            yield _question(ask, ask.family, dialogue(text), n * 3 + i)


def _phrasing(language: Language) -> Iterator[Question]:
    """What conversations ask too, in held-out phrasings."""
    draw = Draw(0, f"questions:phrasing:{language}")
    for family, count in (("facts", 50), ("things", 25), ("order", 10), ("pairs", 10), ("translation", 15)):
        for n, ask in enumerate(draw.sample([a for a in asks(language) if a.family == family], count)):
            question = _question(ask, "phrasing", dialogue(draw.pick(ask.held_out_questions)), n)
            yield replace(question, id=f"{language}/phrasing/{ask.key}/{n}")
    for n in range(10):
        task = pick_task(draw)
        while task[1] != ">" and not _is_open(*task):
            task = pick_task(draw)
        ask = task_ask(task, language)
        yield _question(ask, "phrasing", dialogue(draw.pick(ask.held_out_questions)), n)


def _arithmetic(language: Language) -> Iterator[Question]:
    draw = Draw(0, f"questions:arithmetic:{language}")
    kinds: tuple[tuple[str, Size, int], ...] = (
        ("+", "small", 25),
        ("+", "digits", 25),
        ("+", "carry", 10),
        ("-", "small", 20),
        ("-", "digits", 20),
        ("-", "carry", 10),
        (">", "digits", 15),
    )
    for operation, size, count in kinds:
        # A sum whose answer is one of its own numbers could be "answered" by repeating it.
        found = [t for t in tasks(operation, size, held_out=True) if operation == ">" or _is_open(*t)]
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


def _new_subjects(language: Language) -> Iterator[Question]:
    """Some of the questions above and sums, after one or two about something else, which conversations ask too."""
    draw = Draw(0, f"questions:new-subject:{language}")
    others = asks(language)
    for n, question in enumerate(draw.sample([*_asked(language), *_arithmetic(language)], 40)):
        before = [turn for ask in draw.sample(others, 1 + n % 2) for turn in (draw.pick(ask.questions), ask.full())]
        messages = (*dialogue(*before), *question.messages)
        yield replace(question, id=f"{language}/new-subject/{n}", family="new-subject", messages=messages)


def _identity(language: Language) -> Iterator[Question]:
    others = tuple(normalise(name) for term in prompts.OTHER_NAMES for name in term)
    for topic_number, topic in enumerate(identity.TOPICS[language]):
        for n, text in enumerate(topic.held_out):
            name = f"{language}/identity/{topic_number}/{n}"
            rivals = topic.rivals or (others if topic_number == 0 else ())
            yield Question(name, language, "identity", tuple(dialogue(text)), topic.answers, rivals)


def _prompt(draw: Draw, n: int, trained: Sequence[str], held_out: Sequence[str]) -> str:
    return draw.pick(held_out if n % EVERY == 0 else trained)


def _system(language: Language) -> Iterator[Question]:
    """Behaviour set by a system prompt: the bare answer, the other language, another name.

    The facts are those that nothing asks for; every third prompt is in no conversation either.
    """
    draw = Draw(0, f"questions:system:{language}")
    held_out = asks(language, held_out=True)
    for n, ask in enumerate(draw.sample([a for a in held_out if a.family in ("facts", "things")], 40)):
        system = _prompt(draw, n, prompts.SHORT[language], prompts.HELD_OUT_SHORT[language])
        yield _question(ask, "system", dialogue(draw.pick(ask.questions), system=system), n, exact=True)
    twins = {ask.key: ask for ask in asks(OTHER[language], held_out=True)}
    for n, ask in enumerate(draw.sample([a for a in held_out if a.family == "facts"], 25)):
        system = _prompt(draw, n, prompts.OTHER_LANGUAGE[language], prompts.HELD_OUT_OTHER_LANGUAGE[language])
        question = _question(twins[ask.key], "system", dialogue(draw.pick(ask.questions), system=system), n)
        yield replace(question, id=f"{language}/system/other/{n}", language=language)
    names = [term.say(language) for term in prompts.OTHER_NAMES] + [identity.NAME[language]]
    for n, name in enumerate(names[:20]):
        topic = identity.TOPICS[language][0]
        system = _prompt(draw, n, prompts.NAME[language], prompts.HELD_OUT_NAME[language]).format(name=name)
        messages = dialogue(topic.held_out[n % len(topic.held_out)], system=system)
        rivals = tuple(normalise(other) for other in names if other != name)
        yield Question(f"{language}/system/name/{n}", language, "system", tuple(messages), (normalise(name),), rivals)


def _unknown(language: Language) -> Iterator[Question]:
    """Strangers and things outside the world: the right answer is not to know."""
    refusals = tuple(normalise(text) for text in unknowns.REFUSALS[language])
    for n, text in enumerate(unknowns.HELD_OUT_OUTSIDE[language]):
        yield Question(f"{language}/unknown/outside/{n}", language, "unknown", tuple(dialogue(text)), refusals)
    for n in range(2 * len(unknowns.HELD_OUT_STRANGERS)):
        stranger = Entity("person", unknowns.HELD_OUT_STRANGERS[n // 2], {})
        attribute = ATTRIBUTES["person"][n % len(ATTRIBUTES["person"])]
        rivals = tuple(normalise(value) for term in values_of("person", attribute) for value in term)
        choices = ASKED[language].QUESTIONS["person"][attribute]
        text = fill(choices[n % len(choices)], stranger, language)
        yield Question(f"{language}/unknown/stranger/{n}", language, "unknown", tuple(dialogue(text)), refusals, rivals)


def _skill(
    language: Language, family: str, count: int, make: Callable[[Draw, Language, bool], Ask]
) -> Iterator[tuple[Ask, Question]]:
    """`count` different questions; every third in a held-out phrasing."""
    draw, seen = Draw(0, f"questions:{family}:{language}"), set[str]()
    while len(seen) < count:
        ask = make(draw, language, True)
        if ask.key not in seen:
            text = _prompt(draw, len(seen), ask.questions, ask.held_out_questions)
            seen.add(ask.key)
            yield ask, _question(ask, family, dialogue(text), len(seen))


def _reading(draw: Draw, language: Language, held_out: bool) -> Ask:
    ((_, ask),) = reading_asks(draw, language, 1, held_out)
    return ask


def _skills(language: Language) -> Iterator[Question]:
    """Texts to read, numbers to count, sums to think about, and sums for the calculator."""
    yield from (question for _, question in _skill(language, "reading", 50, _reading))
    yield from (question for _, question in _skill(language, "counting", 40, counting_ask))
    yield from (question for _, question in _skill(language, "thinking", 30, lambda *all: thinking_ask(*all)[0]))
    for ask, question in _skill(language, "tools", 30, lambda *all: tool_ask(*all)[0]):
        call = {"name": "calculator", "arguments": {"expression": ask.forms[0].removesuffix(" = {}")}}
        yield replace(question, tools=(CALCULATOR,), call=call)


@cache
def questions() -> tuple[Question, ...]:
    """All held-out questions: the same for every seed, for the world is. About half are in each language."""
    families = (_asked, _phrasing, _arithmetic, _follow_ups, _new_subjects, _identity, _system, _unknown, _skills)
    return tuple(question for language in LANGUAGES for family in families for question in family(language))
