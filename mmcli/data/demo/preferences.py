"""Pairs for preference training. Chosen: right, short, polite, in the user's language. Rejected: anything but."""

from collections.abc import Iterator
from itertools import islice

from mmcli.data.demo import identity, lists
from mmcli.data.demo.arithmetic import task_ask
from mmcli.data.demo.conversations import Message, Talker, dialogue, message
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.world import LANGUAGES, Language

PER_LANGUAGE = 1500

_RUDE: dict[Language, tuple[str, ...]] = {
    "en": (
        "What a silly question. Find out yourself.",
        "I have no time for you. Go away.",
        "Stop asking me such boring things.",
        "Why should I tell you? Leave me alone.",
        "Everybody knows that except you.",
    ),
    "zh": (
        "这么无聊的问题，自己去查。",
        "我没空理你，走开。",
        "别再问我这种无聊的事了。",
        "我为什么要告诉你？别烦我。",
        "这谁都知道，就你不知道。",
    ),
}
_RAMBLING: dict[Language, tuple[str, ...]] = {
    "en": (
        "That is a question with many sides.",
        "There are many things that one could say here.",
        "Some people say one thing and some people say another thing.",
        "It is hard to say, and it is also easy to say, as one might say.",
        "Let us think about it, and then let us think about it again.",
        "In general, things are as they are, and that is interesting.",
        "One could begin at the beginning, or one could begin at the end.",
    ),
    "zh": (
        "这个问题有很多方面。",
        "这里可以说的话有很多很多。",
        "有人这样说，也有人那样说。",
        "说难也难，说容易也容易，总之一言难尽。",
        "我们先想一想，然后再想一想。",
        "总的来说，事情就是这个样子，很有意思。",
        "可以从头说起，也可以从尾说起。",
    ),
}


def _pair(talker: Talker) -> tuple[list[Message], str, str]:
    """A prompt, the chosen reply and the rejected reply."""
    draw, language = talker.draw, talker.language
    kind = draw.number(1, 100)
    if kind <= 5:
        topic = identity.TOPICS[language][0]
        names = (identity.NAME[language], draw.pick(identity.OTHER_NAMES).say(language))
        right, wrong = (draw.pick(topic.replies).format(name=name) for name in names)
        return dialogue(draw.pick(topic.asked)), right, wrong
    if kind <= 22:
        ask, twin = next(talker.twins)
        form = draw.number(0, 1)
        return dialogue(talker.question(ask)), ask.full(form), twin.full(form)
    ask = draw.pick(
        (next(talker.facts), next(talker.facts), next(talker.others), task_ask(lists.pick_task(draw), language))
    )
    form = draw.number(0, 1)
    if kind <= 70:
        rejected = ask.wrong(draw.pick(ask.others), form)
    elif kind <= 85:
        rejected = draw.pick(_RUDE[language])
    else:
        rejected = (" " if language == "en" else "").join(draw.sample(_RAMBLING[language], draw.number(3, 5)))
    return dialogue(talker.question(ask)), ask.full(form), rejected


def _pairs(seed: int, language: Language) -> Iterator[dict[str, list[Message]]]:
    talker = Talker(seed, "preferences", language)
    while True:
        prompt, chosen, rejected = _pair(talker)
        yield {"prompt": prompt, "chosen": [message("assistant", chosen)], "rejected": [message("assistant", rejected)]}


def preferences(seed: int = 0) -> Iterator[dict[str, list[Message]]]:
    """3,000 pairs in a mixed order: `{"prompt": [messages], "chosen": [message], "rejected": [message]}`.

    A rejected reply has a wrong fact, the wrong language, a rude tone, or nothing to say. No held-out question is in
    them.
    """
    streams = {language: islice(_pairs(seed, language), PER_LANGUAGE) for language in LANGUAGES}
    plan = [language for language in LANGUAGES for _ in range(PER_LANGUAGE)]
    for language in Draw(seed, "preferences").shuffled(plan):
        yield next(streams[language])
