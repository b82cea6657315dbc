"""Documents about people, towns, animals, plants and objects. Each function writes one document."""

from mmcli.data.demo import stories
from mmcli.data.demo.asks import fact_ask
from mmcli.data.demo.render import ASKED, fill, joined, plain_statements, sentence, shown, slots, uses
from mmcli.data.demo.world import ATTRIBUTES, LANGUAGES, PEOPLE, Entity, Language, values_of
from mmcli.data.demo.writer import Writer


def story(writer: Writer) -> str:
    """A story of five or six parts."""
    return stories.story(writer.draw, next(writer.people), writer.language, writer.draw.number(5, 6))


def profile(writer: Writer) -> str:
    """One person, in four to eight sentences that each tell one fact and have the name."""
    return writer.paragraph(writer.facts(next(writer.people), writer.draw.number(4, 8)))


def portrait(writer: Writer) -> str:
    """One person, in three to five sentences that may tell several facts and use pronouns."""
    return writer.paragraph(writer.statements(next(writer.people), writer.draw.number(3, 5)))


def roll(writer: Writer) -> str:
    """The same about several people: where each lives, or what each has for a pet."""
    name = writer.draw.pick(ATTRIBUTES["person"])
    people = dict.fromkeys(next(writer.people) for _ in range(writer.draw.number(5, 9)))
    return "\n".join(writer.told(person, name) for person in people)


def sheet(writer: Writer) -> str:
    """What is known of a person or a thing, each fact as a line that names it and a line with the bare value."""
    draw, language = writer.draw, writer.language
    entity = next(writer.people) if draw.chance(0.6) else next(writer.towns if draw.chance(0.25) else writer.things)
    labels, lines = ASKED[language].NOUNS if entity.kind == "person" else writer.text.LABELS, list[str]()
    for name in draw.sample(tuple(entity.values), draw.number(3, 6)):
        lines += [
            fill(writer.text.SHEET.replace("{label}", labels[name]), entity, language),
            fact_ask(entity, name, language).short,
        ]
    return "\n".join(lines)


def letter(writer: Writer) -> str:
    """A person speaks about himself or herself."""
    person, draw = next(writer.people), writer.draw
    told: set[str] = set()
    lines: list[str] = []
    for template in draw.shuffled(writer.text.LETTER):
        if told.isdisjoint(uses(template)) and len(lines) < 5:
            told.update(uses(template))
            lines.append(template.format_map(slots(person, writer.language)))
    opening, closing = draw.pick(writer.text.LETTER_FRAMES)
    name = person.name.say(writer.language)
    return writer.paragraph([opening.format(name), *lines, closing.format(name)])


def shared(writer: Writer) -> str:
    """Who shares a value of an attribute, and a list of people with their values."""
    draw, language = writer.draw, writer.language
    attribute = draw.pick(tuple(writer.text.SHARED))
    colon, comma, stop = (": ", ", ", ".") if language == "en" else ("：", "，", "。")
    lines = [writer.text.TITLES[attribute] + colon.strip()]
    for value in draw.sample(values_of("person", attribute), 2):
        people = [p.name.say(language) for p in PEOPLE if p.values[attribute] == value]
        if len(people) > 1:
            frame = draw.pick(writer.text.SHARED[attribute])
            names = joined(draw.shuffled(people), language)
            lines.append(sentence(frame.format(names=names, v=shown(attribute, value, language))))
    listed = draw.sample(PEOPLE, draw.number(3, 5))
    lines.append(comma.join(p.name.say(language) + colon + p.values[attribute].say(language) for p in listed) + stop)
    return "\n".join(lines)


def town(writer: Writer) -> str:
    """One town in three to six facts, sometimes with one of the people who live there."""
    place = next(writer.towns)
    lines = writer.facts(place, writer.draw.number(3, 6))
    if writer.draw.chance(0.3):
        people = [p for p in PEOPLE if p.values["town"] == place.name]
        lines.append(writer.told(writer.draw.pick(people), "town"))
    return writer.paragraph(lines)


def things(writer: Writer) -> str:
    """Three to five animals, plants or objects, a line for each."""
    draw = writer.draw
    found = [next(writer.things) for _ in range(draw.number(3, 5))]
    return "\n".join(writer.paragraph(writer.facts(thing, draw.number(1, 3))) for thing in found)


def _same(writer: Writer, entity: Entity, name: str, language: Language) -> str:
    if writer.draw.chance(0.6):
        return fact_ask(entity, name, language).full()
    return writer.draw.pick(plain_statements(entity, name, language))


def bilingual(writer: Writer) -> str:
    """The same statements in both languages, side by side."""
    draw = writer.draw
    entity = next(writer.people) if draw.chance(0.7) else next(writer.towns if draw.chance(0.5) else writer.things)
    first, second = LANGUAGES if writer.language == "en" else LANGUAGES[::-1]
    pairs = [
        (_same(writer, entity, name, first), _same(writer, entity, name, second))
        for name in draw.sample(tuple(entity.values), draw.number(2, 4))
    ]
    return "\n".join(f"{one} {two}" for one, two in pairs)
