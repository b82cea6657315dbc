"""What every kind of document needs: a language, random choices, and decks that deal everything equally often."""

from mmcli.data.demo.asks import Ask, asks
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.render import TEXT, fill, fits, uses
from mmcli.data.demo.world import ENTITIES, MAIN_PEOPLE, PEOPLE, TOWNS, Entity, Language

THINGS = tuple(e for e in ENTITIES if e.kind in ("animal", "plant", "object"))


class Writer:
    """The context of one kind of document in one language."""

    def __init__(self, seed: int, kind: str, language: Language) -> None:
        self.draw = Draw(seed, f"documents:{kind}:{language}")
        self.language: Language = language
        self.text = TEXT[language]
        self.people = self.draw.deck(PEOPLE + MAIN_PEOPLE)
        self.towns = self.draw.deck(TOWNS)
        self.things = self.draw.deck(THINGS)
        facts = [ask for ask in asks(language) if ask.family == "facts"]
        self.fact_asks = self.draw.deck(facts)
        self.other_asks = self.draw.deck([ask for ask in asks(language) if ask.family != "facts"])

    def paragraph(self, sentences: list[str]) -> str:
        """Sentences one after the other."""
        return (" " if self.language == "en" else "").join(sentences)

    def statements(self, entity: Entity, count: int, pronouns: float = 0.3) -> list[str]:
        """Up to `count` statements about an entity, none of which repeats what another tells.

        The first one has the name; each later one a pronoun instead with probability `pronouns`. Held-out facts are
        told.
        """
        told: set[str] = set()
        result: list[str] = []
        for template in self.draw.shuffled(self.text.STATEMENTS[entity.kind]):
            if len(result) == count:
                break
            if told.isdisjoint(uses(template)) and fits(template, entity, held_out=True):
                told.update(uses(template))
                result.append(fill(template, entity, self.language, bool(result) and self.draw.chance(pronouns)))
        return result

    def answer(self, ask: Ask) -> str:
        """A right answer: mostly a sentence, sometimes the value alone."""
        return ask.short if self.draw.chance(0.25) else ask.full(self.draw.number(0, 1))
