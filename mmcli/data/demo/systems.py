"""Conversations under a system prompt: the bare answer, the other language, another name, or nothing special."""

from mmcli.data.demo import identity, prompts
from mmcli.data.demo.arithmetic import pick_task, task_ask
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.talker import Message, Talker, dialogue
from mmcli.data.demo.world import OTHER


def _any(talker: Talker) -> Ask:
    """Half facts; the rest things, orders, word pairs, translations and sums."""
    draw = talker.draw
    family = draw.pick(("facts", "facts", "facts", "facts", "things", "things", "order", "pairs", "translation", ""))
    return next(talker.decks[family]) if family else task_ask(pick_task(draw), talker.language)


def short_answer(talker: Talker) -> list[Message]:
    """A system prompt that asks for the bare answer, for one to four questions."""
    draw, turns = talker.draw, list[str]()
    for _ in range(draw.number(1, 4)):
        ask = _any(talker)
        turns += [draw.pick(ask.questions), ask.short]
    return dialogue(*turns, system=draw.pick(prompts.SHORT[talker.language]))


def other_language(talker: Talker) -> list[Message]:
    """A system prompt that asks for answers in the other language: facts, greetings, the name."""
    draw, language, turns = talker.draw, talker.language, list[str]()
    other = OTHER[language]
    if draw.chance(0.12):
        n = draw.number(0, len(identity.SMALL_TALK[language]) - 1)
        turns += [draw.pick(identity.SMALL_TALK[language][n][0]), draw.pick(identity.SMALL_TALK[other][n][1])]
    elif draw.chance(0.08):
        n = draw.number(0, len(identity.TOPICS[language]) - 1)
        reply = draw.pick(identity.TOPICS[other][n].replies).format(name=identity.NAME[other])
        turns += [draw.pick(identity.TOPICS[language][n].asked), reply]
    for _ in range(1 if turns else draw.pick((1, 1, 2, 2, 3))):
        ask, twin = next(talker.twins)
        turns += [draw.pick(ask.questions), talker.answer(twin)]
    return dialogue(*turns, system=draw.pick(prompts.OTHER_LANGUAGE[language]))


def given_name(talker: Talker) -> list[Message]:
    """A system prompt that gives the assistant another name, alone or with the wish for a bare answer."""
    draw, language = talker.draw, talker.language
    topic, name = identity.TOPICS[language][0], draw.pick(prompts.OTHER_NAMES).say(language)
    system, turns = draw.pick(prompts.NAME[language]).format(name=name), list[str]()
    bare = draw.chance(0.15)
    if bare:
        system += (" " if language == "en" else "") + draw.pick(prompts.SHORT[language])
    if not bare and draw.chance(0.2):
        said, replies = draw.pick(identity.SMALL_TALK[language])
        own = [text for text in said if identity.NAME[language] not in text]
        turns += [draw.pick(own), draw.pick(replies)]
    if draw.chance(0.2):
        ask = next(talker.decks["facts"])
        turns += [draw.pick(ask.questions), ask.short if bare else talker.answer(ask)]
    turns += [draw.pick(topic.asked), name if bare else draw.pick(topic.replies).format(name=name)]
    return dialogue(*turns, system=system)


def plain_system(talker: Talker) -> list[Message]:
    """A system prompt that changes nothing: the answer is the usual sentence."""
    ask = _any(talker)
    system = talker.draw.pick(prompts.PLAIN[talker.language])
    return dialogue(talker.draw.pick(ask.questions), talker.answer(ask), system=system)
