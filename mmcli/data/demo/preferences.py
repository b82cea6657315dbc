"""Pairs for preference training. Chosen: right, short, polite, in the user's language. Rejected: anything but."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mmcli.data.demo import identity, prompts
from mmcli.data.demo.arithmetic import pick_task, task_ask, tasks
from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import asks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.talker import Message, Talker, dialogue, message
from mmcli.data.demo.world import LANGUAGES, OTHER, Language

PER_LANGUAGE, HELD_OUT_PER_LANGUAGE = 2000, 150

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


@dataclass(frozen=True)
class _Pair:
    prompt: list[Message]
    chosen: str
    rejected: str


class _Source:
    """Where the prompts of one language come from: what conversations ask, or what is held out from them."""

    def __init__(self, talker: Talker, held_out: bool) -> None:
        self.talker, self.held_out = talker, held_out
        language, draw = talker.language, talker.draw
        found = {family: [a for a in asks(language, held_out) if a.family == family] for family in talker.decks}
        self._decks = {family: draw.deck(listed) for family, listed in found.items()}
        others = {ask.key: ask for ask in asks(OTHER[language], held_out)}
        self.twins = draw.deck([(ask, others[ask.key]) for name in ("facts", "things") for ask in found[name]])

    def ask(self) -> Ask:
        """Half facts; the rest everything else."""
        draw = self.talker.draw
        family = draw.pick(("facts", "facts", "facts", "things", "order", "pairs", "translation", ""))
        if family:
            return next(self._decks[family])
        if not self.held_out:
            return task_ask(pick_task(draw), self.talker.language)
        found = tasks(draw.pick("+->"), "small" if draw.chance(0.5) else "digits", held_out=True)
        return task_ask(draw.pick(found), self.talker.language)

    def prompt(self, ask: Ask) -> list[Message]:
        return dialogue(self.talker.draw.pick(ask.questions) if self.held_out else self.talker.question(ask))


def _pair(talker: Talker, source: _Source) -> _Pair:
    """A prompt, the chosen reply and the rejected reply: wrong, in the wrong language, rude, or rambling."""
    draw, language = talker.draw, talker.language
    kind = draw.number(1, 100)
    if kind <= 4 and not source.held_out:
        topic = identity.TOPICS[language][0]
        names = (identity.NAME[language], draw.pick(prompts.OTHER_NAMES).say(language))
        right, wrong = (draw.pick(topic.replies).format(name=name) for name in names)
        return _Pair(dialogue(draw.pick(topic.asked)), right, wrong)
    if kind <= 20:
        ask, twin = next(source.twins)
        form = draw.number(0, 1)
        return _Pair(source.prompt(ask), ask.full(form), twin.full(form))
    ask = source.ask()
    form = draw.number(0, 1)
    if kind <= 65:
        rejected = ask.wrong(draw.pick(ask.others), form)
    elif kind <= 75:  # the right answer, and then no end
        rejected = _joined(language, [ask.full(form), *draw.sample(_RAMBLING[language], 2)])
    elif kind <= 87:
        rejected = _joined(language, draw.sample(_RAMBLING[language], draw.number(2, 4)))
    else:
        rejected = draw.pick(_RUDE[language])
    return _Pair(source.prompt(ask), ask.full(form), rejected)


def _joined(language: Language, sentences: list[str]) -> str:
    return (" " if language == "en" else "").join(sentences)


def _pairs(seed: int, language: Language, held_out: bool) -> Iterator[dict[str, list[Message]]]:
    talker = Talker(seed, "preferences:held-out" if held_out else "preferences", language)
    source = _Source(talker, held_out)
    while True:
        pair = _pair(talker, source)
        if pair.chosen != pair.rejected:
            chosen, rejected = message("assistant", pair.chosen), message("assistant", pair.rejected)
            yield {"prompt": pair.prompt, "chosen": [chosen], "rejected": [rejected]}


def preferences(seed: int = 0, held_out: bool = False) -> Iterator[dict[str, list[Message]]]:
    """Pairs in a mixed order: `{"prompt": [messages], "chosen": [message], "rejected": [message]}`.

    A rejected reply has a wrong fact, the wrong language, a rude tone, or does not come to an end. No held-out question
    is in the 4,000 pairs for training; the 300 of `held_out` ask nothing else, for measuring.
    """
    count = HELD_OUT_PER_LANGUAGE if held_out else PER_LANGUAGE
    streams = {language: islice(_pairs(seed, language, held_out), count) for language in LANGUAGES}
    plan = [language for language in LANGUAGES for _ in range(count)]
    for language in Draw(seed, "preferences").shuffled(plan):
        yield next(streams[language])
