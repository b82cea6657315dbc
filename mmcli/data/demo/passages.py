"""Documents about people, towns, animals, plants and objects. Each function writes one document."""

from functools import cache

from mmcli.data.demo import stories
from mmcli.data.demo.render import TEXT, fill, joined, sentence, shown, slots, uses
from mmcli.data.demo.world import LANGUAGES, PEOPLE, Entity, Language, values_of
from mmcli.data.demo.writer import Writer


def story(writer: Writer) -> str:
    """A story of five to nine parts."""
    return stories.story(writer.draw, next(writer.people), writer.language, writer.draw.number(5, 9))


def profile(writer: Writer) -> str:
    """One person, in four to eight sentences."""
    return writer.paragraph(writer.statements(next(writer.people), writer.draw.number(4, 8)))


def letter(writer: Writer) -> str:
    """A person speaks about himself or herself."""
    person, draw = next(writer.people), writer.draw
    told: set[str] = set()
    lines: list[str] = []
    for template in draw.shuffled(writer.text.LETTER):
        if told.isdisjoint(uses(template)) and len(lines) < 6:
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
    for value in draw.sample(values_of("person", attribute), 3):
        people = [p.name.say(language) for p in PEOPLE if p.values[attribute] == value]
        if len(people) > 1:
            frame = draw.pick(writer.text.SHARED[attribute])
            names = joined(draw.shuffled(people), language)
            lines.append(sentence(frame.format(names=names, v=shown(attribute, value, language))))
    listed = draw.sample(PEOPLE, draw.number(4, 7))
    lines.append(comma.join(p.name.say(language) + colon + p.values[attribute].say(language) for p in listed) + stop)
    return "\n".join(lines)


def town(writer: Writer) -> str:
    """One town, and one or two of the people who live there."""
    place = next(writer.towns)
    lines = writer.statements(place, writer.draw.number(3, 6))
    homes = [template for template in writer.text.STATEMENTS["person"] if "town" in uses(template)]
    people = [p for p in PEOPLE if p.values["town"] == place.name]
    for person in writer.draw.sample(people, writer.draw.number(1, 2)):
        lines.append(fill(writer.draw.pick(homes), person, writer.language))
    return writer.paragraph(lines)


def things(writer: Writer) -> str:
    """Three to five animals, plants or objects, a paragraph for each."""
    draw = writer.draw
    found = [next(writer.things) for _ in range(draw.number(3, 5))]
    return "\n".join(writer.paragraph(writer.statements(thing, draw.number(1, 3))) for thing in found)


@cache
def _plain(entity: Entity, attribute: str, language: Language) -> tuple[str, ...]:
    """Statements about this attribute alone, with the name."""
    templates = TEXT[language].STATEMENTS[entity.kind]
    return tuple(fill(t, entity, language) for t in templates if uses(t) == (attribute,))


def bilingual(writer: Writer) -> str:
    """The same statements in both languages, side by side."""
    draw = writer.draw
    entity = next(writer.people) if draw.chance(0.7) else next(writer.towns if draw.chance(0.5) else writer.things)
    first, second = LANGUAGES if writer.language == "en" else LANGUAGES[::-1]
    pairs = [
        (draw.pick(_plain(entity, name, first)), draw.pick(_plain(entity, name, second)))
        for name in draw.sample(tuple(entity.values), draw.number(3, 5))
    ]
    return "\n".join(f"{one} {two}" for one, two in pairs)
