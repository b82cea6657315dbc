"""What every kind of document needs: a language, random choices, and decks that deal everything equally often."""

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.asks import asks, fact_ask
from mmcli.data.demo.draw import Draw
from mmcli.data.demo.lexicon import MEASURES, OPPOSITES, ORDERS, PLURALS, TRANSLATIONS
from mmcli.data.demo.render import TEXT, fill, fits, plain_statements, uses
from mmcli.data.demo.world import ENTITIES, LANGUAGES, MAIN_PEOPLE, PEOPLE, TOWNS, Entity, Language, Term

THINGS = tuple(e for e in ENTITIES if e.kind in ("animal", "plant", "object"))


def _neighbours() -> list[tuple[Term, Term, int]]:
    """Each item of each list with the next (1) and with the previous one (-1), as far as there are."""
    return [
        (item, items[(i + step) % len(items)], step)
        for items, round_trip in ORDERS.values()
        for i, item in enumerate(items)
        for step in (1, -1)
        if round_trip or 0 <= i + step < len(items)
    ]


class Writer:
    """The context of one kind of document in one language."""

    def __init__(self, seed: int, kind: str, language: Language) -> None:
        self.draw = Draw(seed, f"documents:{kind}:{language}")
        self.language: Language = language
        self.text = TEXT[language]
        self.people = self.draw.deck(PEOPLE + MAIN_PEOPLE)
        self.towns = self.draw.deck(TOWNS)
        self.things = self.draw.deck(THINGS)
        self.opposites = self.draw.deck([terms[::step] for terms in OPPOSITES for step in (1, -1)])
        self.counted = self.draw.deck(PLURALS if language == "en" else MEASURES)
        self.translations = self.draw.deck([(term, into) for term in TRANSLATIONS for into in LANGUAGES])
        self.neighbours = self.draw.deck(_neighbours())
        facts = [ask for ask in asks(language) if ask.family == "facts"]
        self.fact_asks = self.draw.deck(facts)
        self.other_asks = self.draw.deck([ask for ask in asks(language) if ask.family != "facts"])

    def paragraph(self, sentences: list[str]) -> str:
        """Sentences one after the other."""
        return (" " if self.language == "en" else "").join(sentences)

    def told(self, entity: Entity, attribute: str) -> str:
        """One fact with the full name, as often as not in the words of an answer. Held-out facts are told."""
        if self.draw.chance(0.55):
            return fact_ask(entity, attribute, self.language).full(self.draw.chance(0.3))
        return self.draw.pick(plain_statements(entity, attribute, self.language))

    def facts(self, entity: Entity, count: int) -> list[str]:
        """`count` facts of an entity, each with the full name."""
        return [self.told(entity, name) for name in self.draw.sample(tuple(entity.values), count)]

    def statements(self, entity: Entity, count: int, pronouns: float = 0.2) -> list[str]:
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
        return ask.short if self.draw.chance(0.25) else ask.full(self.draw.chance(0.3))
