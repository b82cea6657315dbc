"""The conversations for fine-tuning: short answers about the world, follow-ups, system prompts, small talk."""

from collections.abc import Callable, Iterator

from mmcli.data.demo import exchanges, identity, lists
from mmcli.data.demo.arithmetic import task_ask
from mmcli.data.demo.asks import Ask, asks, fact_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import TEXT, fill
from mmcli.data.demo.stories import CHAT_PAIRS, short_story
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE, Entity, Language, is_held_out

Message = dict[str, str]
OTHER: dict[Language, Language] = {"en": "zh", "zh": "en"}


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def dialogue(*turns: str, system: str | None = None) -> list[Message]:
    """Messages from turns that alternate between user and assistant."""
    head = [message("system", system)] if system else []
    return head + [message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]


class Talker:
    """The context of one kind of conversation in one language."""

    def __init__(self, seed: int, kind: str, language: Language) -> None:
        self.draw = Draw(seed, f"conversations:{kind}:{language}")
        self.language: Language = language
        self.text = TEXT[language]
        allowed = asks(language)
        self.people = self.draw.deck(PEOPLE)
        self.facts = self.draw.deck([ask for ask in allowed if ask.family == "facts"])
        self.others = self.draw.deck([ask for ask in allowed if ask.family != "facts"])
        # Questions with a twin in the other language, in the same place of its list.
        twins = [
            {ask.key: ask for ask in asks(lang) if ask.family in ("facts", "things")}
            for lang in (language, OTHER[language])
        ]
        self.twins = self.draw.deck([(ask, twins[1][key]) for key, ask in twins[0].items()])

    def question(self, ask: Ask) -> str:
        """One phrasing, sometimes with a word before it."""
        wrapper: str = self.draw.pick(self.text.WRAPPERS)
        return wrapper.format(self.draw.pick(ask.questions))

    def askable(self, person: Entity) -> list[str]:
        """The person's attributes that are not held out, in a new order."""
        return self.draw.shuffled([name for name in ATTRIBUTES["person"] if not is_held_out(person, name)])


def follow_up(draw: Draw, person: Entity, attribute: str, language: Language) -> str:
    """A question after another attribute of the person just spoken of: 'And her pet?', 'Where does she live?'."""
    text = TEXT[language]
    if draw.chance(0.6):
        template = draw.pick(text.FOLLOW_UPS).replace("{noun}", text.NOUNS[attribute])
    else:
        template = draw.pick(text.QUESTIONS["person"][attribute])
    return fill(template, person, language, pronoun=True)


def _ask(talker: Talker, ask: Ask) -> list[Message]:
    return dialogue(talker.question(ask), ask.full(talker.draw.number(0, 1)))


def facts(talker: Talker) -> list[Message]:
    """A question about a person."""
    return _ask(talker, next(talker.facts))


def others(talker: Talker) -> list[Message]:
    """A question about a thing, an order, a word pair or a translation."""
    return _ask(talker, next(talker.others))


def arithmetic(talker: Talker) -> list[Message]:
    """A sum, a difference or a comparison."""
    return _ask(talker, task_ask(lists.pick_task(talker.draw), talker.language))


def follow_ups(talker: Talker) -> list[Message]:
    """Two or three questions about one person, the later ones with a pronoun; or the same about another person."""
    draw, language, person = talker.draw, talker.language, next(talker.people)
    names = talker.askable(person)[: draw.number(2, 3)]
    turns: list[str] = []
    for name in names:
        ask = fact_ask(person, name, language)
        turns += [
            follow_up(draw, person, name, language) if turns else draw.pick(ask.questions),
            ask.full(draw.number(0, 1)),
        ]
    if draw.chance(0.25):
        other = draw.pick([p for p in PEOPLE if p is not person and not is_held_out(p, names[-1])])
        asked = f"And {other.name.en}?" if language == "en" else f"那{other.name.zh}呢？"
        turns += [asked, fact_ask(other, names[-1], language).full(draw.number(0, 1))]
    return dialogue(*turns)


def yes_no(talker: Talker) -> list[Message]:
    """A question with yes or no."""
    return dialogue(*exchanges.yes_no(talker.draw, talker.language))


def who(talker: Talker) -> list[Message]:
    """From the value back to the person."""
    return dialogue(*exchanges.who(talker.draw, talker.language))


def small_talk(talker: Talker) -> list[Message]:
    """Greetings and thanks, alone or around a question."""
    draw = talker.draw
    said, replies = draw.pick(identity.SMALL_TALK[talker.language])
    turns = [draw.pick(said), draw.pick(replies)]
    if draw.chance(0.5):
        ask = next(talker.facts)
        turns += [draw.pick(ask.questions), ask.full(draw.number(0, 1))]
    return dialogue(*turns)


def about_me(talker: Talker) -> list[Message]:
    """Who the assistant is."""
    draw = talker.draw
    topic = draw.pick(identity.TOPICS[talker.language])
    question = draw.pick(talker.text.WRAPPERS[:5]).format(draw.pick(topic.asked))
    return dialogue(question, draw.pick(topic.replies).format(name=identity.NAME[talker.language]))


def short_answer(talker: Talker) -> list[Message]:
    """A system prompt that asks for the bare answer."""
    draw = talker.draw
    ask = next(talker.facts) if draw.chance(0.6) else next(talker.others)
    if draw.chance(0.15):
        ask = task_ask(lists.pick_task(draw), talker.language)
    return dialogue(draw.pick(ask.questions), ask.short, system=draw.pick(identity.SHORT_PROMPTS[talker.language]))


def other_language(talker: Talker) -> list[Message]:
    """A system prompt that asks for answers in the other language."""
    ask, twin = next(talker.twins)
    system = talker.draw.pick(identity.OTHER_LANGUAGE_PROMPTS[talker.language])
    return dialogue(talker.draw.pick(ask.questions), twin.full(talker.draw.number(0, 1)), system=system)


def given_name(talker: Talker) -> list[Message]:
    """A system prompt that gives the assistant another name."""
    draw, topic = talker.draw, identity.TOPICS[talker.language][0]
    name = draw.pick(identity.OTHER_NAMES).say(talker.language)
    system = draw.pick(identity.NAME_PROMPTS[talker.language]).format(name=name)
    return dialogue(draw.pick(topic.asked), draw.pick(topic.replies).format(name=name), system=system)


def story(talker: Talker) -> list[Message]:
    """A short story on request."""
    draw = talker.draw
    hero, helper = draw.pick(CHAT_PAIRS)
    question = draw.pick(talker.text.STORY_REQUESTS).format(hero.name.say(talker.language))
    return dialogue(question, short_story(draw, hero, helper, talker.language))


def unknown(talker: Talker) -> list[Message]:
    """A stranger, or something outside the world."""
    draw, language = talker.draw, talker.language
    if draw.chance(0.4):
        return dialogue(draw.pick(identity.OUTSIDE[language]), draw.pick(identity.OUTSIDE_REPLIES[language]))
    stranger = Entity("person", draw.pick(identity.STRANGERS), {}, female=draw.chance(0.5))
    question = draw.pick(talker.text.QUESTIONS["person"][draw.pick(ATTRIBUTES["person"])])
    reply = identity.STRANGER_REPLY[language].format(stranger.name.say(language))
    return dialogue(fill(question, stranger, language), reply)


def describe(talker: Talker) -> list[Message]:
    """Two or three facts about a person."""
    draw, language, person = talker.draw, talker.language, next(talker.people)
    names = talker.askable(person)[: draw.number(2, 3)]
    told = [
        fill(
            draw.pick(talker.text.ANSWERS["person"][name]).replace("{v}", "{{}}"), person, language, pronoun=i > 0
        ).format(fact_ask(person, name, language).value)
        for i, name in enumerate(names)
    ]
    request = draw.pick(talker.text.DESCRIBE_REQUESTS).format(person.name.say(language))
    return dialogue(request, (" " if language == "en" else "").join(told))


# Who writes each kind, and how many conversations of it there are in each language.
KINDS: dict[str, tuple[Callable[[Talker], list[Message]], int]] = {
    "facts": (facts, 1500),
    "others": (others, 1250),
    "arithmetic": (arithmetic, 650),
    "follow_ups": (follow_ups, 850),
    "yes_no": (yes_no, 250),
    "who": (who, 150),
    "small_talk": (small_talk, 150),
    "about_me": (about_me, 200),
    "short_answer": (short_answer, 320),
    "other_language": (other_language, 200),
    "given_name": (given_name, 100),
    "story": (story, 130),
    "unknown": (unknown, 200),
    "describe": (describe, 100),
}


def conversations(seed: int = 0) -> Iterator[dict[str, list[Message]]]:
    """About 12,000 conversations in a mixed order: `{"messages": [{"role", "content"}, ...]}`.

    The same seed gives the same conversations everywhere. No held-out fact, sum or phrasing is in them.
    """
    plan = [(kind, language) for kind, (_, count) in KINDS.items() for language in LANGUAGES for _ in range(count)]
    talkers = {(kind, language): Talker(seed, kind, language) for kind in KINDS for language in LANGUAGES}
    for kind, language in Draw(seed, "conversations").shuffled(plan):
        yield {"messages": KINDS[kind][0](talkers[kind, language])}
