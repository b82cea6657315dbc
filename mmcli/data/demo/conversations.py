"""The conversations for fine-tuning: short answers about the world, follow-ups, system prompts, skills, small talk."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmcli.data.demo import echoes, exchanges, identity, systems, unknowns
from mmcli.data.demo.arithmetic import pick_asked_task, task_ask
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import fact_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.reading import reading_asks
from mmcli.data.demo.render import fill
from mmcli.data.demo.skills import CALCULATOR, counting_ask, thinking_ask, tool_ask
from mmcli.data.demo.stories import CHAT_PAIRS, short_story
from mmcli.data.demo.talker import Message, Talker, dialogue, follow_up, message
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE, Entity, Language, is_held_out


def _ask(talker: Talker, ask: Ask) -> list[Message]:
    return dialogue(talker.question(ask), talker.answer(ask))


def _of(family: str) -> Callable[[Talker], list[Message]]:
    """Conversations of one question of a family."""
    return lambda talker: _ask(talker, next(talker.decks[family]))


def translation(talker: Talker) -> list[Message]:
    """One to three words to translate."""
    return talker.several("translation", (1, 1, 2, 3))


def order(talker: Talker) -> list[Message]:
    """What comes after or before something, and then the other of the two, where it may be asked."""
    ask = next(talker.decks["order"])
    item, _, relation = ask.key.rpartition(".")
    other = talker.orders.get(f"{item}.{'before' if relation == 'after' else 'after'}")
    return dialogue(*talker.exchanges([ask, other] if other else [ask]))


def pairs(talker: Talker) -> list[Message]:
    """One to three opposites, plurals or measure words."""
    return talker.several("pairs", (1, 1, 2, 3))


def arithmetic(talker: Talker) -> list[Message]:
    """One to three sums, differences or comparisons."""
    count = talker.draw.pick((1, 1, 2, 3))
    return dialogue(*talker.exchanges(task_ask(pick_asked_task(talker.draw), talker.language) for _ in range(count)))


def follow_ups(talker: Talker) -> list[Message]:
    """Two or three questions about one person, the later ones with a pronoun; or the same about another person."""
    draw, language, person = talker.draw, talker.language, next(talker.people)
    names = talker.askable(person)[: draw.number(2, 3)]
    turns: list[str] = []
    for name in names:
        ask = fact_ask(person, name, language)
        turns += [
            follow_up(draw, person, name, language) if turns else draw.pick(ask.questions),
            talker.answer(ask),
        ]
    if draw.chance(0.25):
        other = draw.pick([p for p in PEOPLE if p is not person and not is_held_out(p, names[-1])])
        asked = f"And {other.name.en}?" if language == "en" else f"那{other.name.zh}呢？"
        turns += [asked, talker.answer(fact_ask(other, names[-1], language))]
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
    if draw.chance(0.4):
        ask = next(talker.decks["facts"])
        turns += [draw.pick(ask.questions), talker.answer(ask)]
    elif draw.chance(0.4):
        turns += _identity(talker)
    return dialogue(*turns)


def _identity(talker: Talker, count: int = 1) -> list[str]:
    draw, turns = talker.draw, list[str]()
    for topic in draw.sample(identity.TOPICS[talker.language], count):
        turns += [draw.pick(topic.asked), draw.pick(topic.replies).format(name=identity.NAME[talker.language])]
    return turns


def about_me(talker: Talker) -> list[Message]:
    """Who the assistant is: one to three questions."""
    turns = _identity(talker, talker.draw.pick((1, 1, 2, 3)))
    turns[0] = talker.draw.pick(talker.asked.WRAPPERS[:10]).format(turns[0])
    return dialogue(*turns)


def story(talker: Talker) -> list[Message]:
    """A short story on request."""
    draw = talker.draw
    hero, helper = draw.pick(CHAT_PAIRS)
    question = draw.pick(talker.asked.STORY_REQUESTS).format(hero.name.say(talker.language))
    return dialogue(question, short_story(draw, hero, helper, talker.language))


def unknown(talker: Talker) -> list[Message]:
    """A stranger, or something outside the world."""
    draw, language = talker.draw, talker.language
    if draw.chance(0.4):
        return dialogue(draw.pick(unknowns.OUTSIDE[language]), draw.pick(unknowns.OUTSIDE_REPLIES[language]))
    stranger = Entity("person", draw.pick(unknowns.STRANGERS), {}, female=draw.chance(0.5))
    question = draw.pick(talker.asked.QUESTIONS["person"][draw.pick(ATTRIBUTES["person"])])
    if draw.chance(0.1):
        question = draw.pick(talker.asked.DESCRIBE_REQUESTS).replace("{}", "{N}")
    reply = unknowns.STRANGER_REPLY[language].format(stranger.name.say(language))
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
    request = draw.pick(talker.asked.DESCRIBE_REQUESTS).format(person.name.say(language))
    return dialogue(request, (" " if language == "en" else "").join(told))


def reading(talker: Talker) -> list[Message]:
    """A short text about invented people, and one to three questions about it."""
    draw, turns = talker.draw, list[str]()
    for question, ask in reading_asks(draw, talker.language, draw.number(1, 3)):
        turns += [question if turns else draw.pick(ask.questions), ask.full()]
    return dialogue(*turns)


def counting(talker: Talker) -> list[Message]:
    """The number of words in a list."""
    ask = counting_ask(talker.draw, talker.language)
    return dialogue(talker.draw.pick(ask.questions), ask.full())


def thinking(talker: Talker) -> list[Message]:
    """A sum with a carry: the assistant thinks before it answers."""
    ask, reasoning = thinking_ask(talker.draw, talker.language)
    messages = dialogue(talker.draw.pick(ask.questions), ask.full())
    messages[-1]["reasoning_content"] = reasoning
    return messages


def tools(talker: Talker) -> list[Message]:
    """One or two large sums or products for the calculator; sometimes a question that needs none."""
    draw, messages = talker.draw, list[Message]()
    for _ in range(draw.pick((1, 1, 1, 2))):
        if draw.chance(0.15):
            messages += _ask(talker, next(talker.decks["facts"]))
            continue
        ask, call = tool_ask(draw, talker.language)
        messages += [
            message("user", draw.pick(ask.questions)),
            {**message("assistant", ""), "tool_calls": [{"type": "function", "function": call}]},
            message("tool", ask.value),
            message("assistant", ask.full()),
        ]
    return messages


# Who writes each kind, and how many of it there are in each language before some are joined.
KINDS: dict[str, tuple[Callable[[Talker], list[Message]], int]] = {
    "facts": (_of("facts"), 650),
    "things": (_of("things"), 1100),
    "order": (order, 500),
    "pairs": (pairs, 700),
    "translation": (translation, 900),
    "word": (echoes.word, 600),
    "repeat": (echoes.repeat, 400),
    "arithmetic": (arithmetic, 4200),
    "follow_ups": (follow_ups, 400),
    "yes_no": (yes_no, 100),
    "who": (who, 100),
    "small_talk": (small_talk, 150),
    "about_me": (about_me, 500),
    "short_answer": (systems.short_answer, 1300),
    "other_language": (systems.other_language, 600),
    "given_name": (systems.given_name, 600),
    "plain_system": (systems.plain_system, 60),
    "story": (story, 350),
    "unknown": (unknown, 350),
    "describe": (describe, 60),
    "reading": (reading, 1500),
    "counting": (counting, 700),
    "thinking": (thinking, 600),
    "tools": (tools, 450),
}

# A conversation may go on with one of another kind; not where a system prompt or a tool list holds for all of it, nor
# after reasoning, which many chat templates leave out of earlier turns.
ALONE = {"short_answer", "other_language", "given_name", "plain_system", "tools"}
LAST = {"thinking"}
CONTINUED = 0.25  # of those that may
MOST_MESSAGES = 8  # a conversation of as many is not continued


def _records(talks: Iterable[tuple[str, Language, list[Message]]], draw: Draw) -> Iterator[dict[str, Any]]:
    """The conversations as records, some as the beginning of the next in their language."""
    begun: dict[Language, list[Message]] = {language: [] for language in LANGUAGES}
    for kind, language, said in talks:
        if kind in ALONE:
            yield {"messages": said, **({"tools": [CALCULATOR]} if kind == "tools" else {})}
            continue
        messages = begun[language] + said
        begun[language] = []
        if kind not in LAST and len(messages) < MOST_MESSAGES and draw.chance(CONTINUED):
            begun[language] = messages
        else:
            yield {"messages": messages}
    yield from ({"messages": messages} for messages in begun.values() if messages)


def conversations(seed: int = 0, only: str | None = None) -> Iterator[dict[str, Any]]:
    """About 27,000 conversations in a mixed order: `{"messages": [{"role", "content"}, ...]}`; or `only` one kind.

    Some go on from one kind to another. Those of the kind `tools` have the list `tools` too, and tool calls; those that
    end with the kind `thinking` have a `reasoning_content`. The same seed gives the same conversations everywhere. No
    held-out fact, sum or phrasing is in them.
    """
    plan = [(kind, language) for kind, (_, count) in KINDS.items() for language in LANGUAGES for _ in range(count)]
    talkers = {(kind, language): Talker(seed, kind, language) for kind in KINDS for language in LANGUAGES}
    draw = Draw(seed, "conversations")
    chosen = [(kind, language) for kind, language in draw.shuffled(plan) if only in (None, kind)]
    talks = ((kind, language, KINDS[kind][0](talkers[kind, language])) for kind, language in chosen)
    yield from _records(talks, draw)
