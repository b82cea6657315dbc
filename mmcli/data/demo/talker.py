"""What every kind of conversation needs: messages, a language, random choices, and decks of questions."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import asks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import ASKED, TEXT, fill
from mmcli.data.demo.world import ATTRIBUTES, OTHER, PEOPLE, Entity, Language, is_held_out

Message = dict[str, Any]
"""`role` and `content`; of the assistant also `reasoning_content` or `tool_calls`."""


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
        self.asked = ASKED[language]
        allowed = asks(language)
        self.people = self.draw.deck(PEOPLE)
        # A deck of the questions of each family.
        self.decks = {
            family: self.draw.deck([ask for ask in allowed if ask.family == family])
            for family in ("facts", "things", "order", "pairs", "translation")
        }
        self.orders = {ask.key: ask for ask in allowed if ask.family == "order"}
        # Questions with a twin in the other language, in the same place of its list.
        twins = [
            {ask.key: ask for ask in asks(lang) if ask.family in ("facts", "things")}
            for lang in (language, OTHER[language])
        ]
        self.twins = self.draw.deck([(ask, twins[1][key]) for key, ask in twins[0].items()])

    def question(self, ask: Ask) -> str:
        """One phrasing, sometimes with a word before it."""
        wrapper: str = self.draw.pick(self.asked.WRAPPERS)
        return wrapper.format(self.draw.pick(ask.questions))

    def answer(self, ask: Ask) -> str:
        """The right answer as a sentence: mostly the first form, which is learned sooner than two."""
        return ask.full(self.draw.chance(0.3))

    def exchanges(self, asks: Iterable[Ask]) -> list[str]:
        """Questions with their answers, turn by turn; only the first may have a word before it."""
        turns: list[str] = []
        for ask in asks:
            turns += [self.draw.pick(ask.questions) if turns else self.question(ask), self.answer(ask)]
        return turns

    def several(self, family: str, counts: Sequence[int]) -> list[Message]:
        """A conversation of one of `counts` questions of a family."""
        return dialogue(*self.exchanges(next(self.decks[family]) for _ in range(self.draw.pick(counts))))

    def askable(self, person: Entity) -> list[str]:
        """The person's attributes that are not held out, in a new order."""
        return self.draw.shuffled([name for name in ATTRIBUTES["person"] if not is_held_out(person, name)])


def follow_up(draw: Draw, person: Entity, attribute: str, language: Language) -> str:
    """A question after another attribute of the person just spoken of: 'And her pet?', 'Where does she live?'."""
    asked = ASKED[language]
    if draw.chance(0.6):
        template = draw.pick(asked.FOLLOW_UPS).replace("{noun}", asked.NOUNS[attribute])
    else:
        template = draw.pick(asked.QUESTIONS["person"][attribute])
    return fill(template, person, language, pronoun=True)
